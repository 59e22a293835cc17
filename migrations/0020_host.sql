-- Which host this is, in one row: SRs that several hosts see tell them apart by it
-- (plugin/src/state/boot.rs). It survives reboots: it is what the host's own records are known by.
CREATE TABLE host (
    only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    uuid TEXT NOT NULL
) STRICT;
