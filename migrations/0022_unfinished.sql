-- What calls of an earlier boot left half done on SRs that were not kept over the boot: an SR's row
-- goes, and its intents with it, but what lies in its directory does not. Finished or undone by the
-- SR.attach that comes next (plugin/src/sr/attached.rs).
CREATE TABLE unfinished (
    sr        TEXT NOT NULL,
    vdi       TEXT NOT NULL,
    operation TEXT NOT NULL CHECK (json_valid(operation)),
    PRIMARY KEY (sr, vdi, operation)
) STRICT;
