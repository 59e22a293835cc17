-- What one host knows of its own: which SRs are attached, which datapath uses which VDI, which
-- worker serves it, and what was begun and not finished. Volumes' records live on the SR instead.
-- Every row names the boot that wrote it: rows of another boot are void (plugin/src/state.rs).
-- A migration that has been released is never edited; the next change is the next file.

CREATE TABLE sr (
    uuid          TEXT NOT NULL PRIMARY KEY,
    type          TEXT NOT NULL CHECK (type IN ('file')),
    device_config TEXT NOT NULL CHECK (json_valid(device_config)),
    attached_at   TEXT NOT NULL,
    boot_id       TEXT NOT NULL
) STRICT;

-- One use of a VDI, under the caller's name for it. A datapath that is not here is detached.
CREATE TABLE datapath (
    sr      TEXT NOT NULL REFERENCES sr (uuid) ON DELETE CASCADE,
    vdi     TEXT NOT NULL,
    dp      TEXT NOT NULL,
    domain  TEXT NOT NULL,
    state   TEXT NOT NULL CHECK (state IN ('attached', 'activated')),
    mode    TEXT NOT NULL CHECK (mode IN ('RO', 'RW')),
    since   TEXT NOT NULL,
    leaked  INTEGER NOT NULL DEFAULT 0 CHECK (leaked IN (0, 1)),
    boot_id TEXT NOT NULL,
    PRIMARY KEY (sr, vdi, dp)
) STRICT;

-- A process is this one only while pid and start time (clock ticks since boot) both agree.
CREATE TABLE worker (
    id         TEXT NOT NULL PRIMARY KEY,
    sr         TEXT NOT NULL REFERENCES sr (uuid),
    vdi        TEXT NOT NULL,
    pid        INTEGER NOT NULL CHECK (pid > 0),
    start_time INTEGER NOT NULL,
    boot_id    TEXT NOT NULL,
    socket     TEXT NOT NULL,
    version    TEXT NOT NULL,
    read_only  INTEGER NOT NULL CHECK (read_only IN (0, 1)),
    since      TEXT NOT NULL,
    UNIQUE (sr, vdi)
) STRICT;

-- Written before an effect, removed with its outcome. `vdi` is empty for an operation on a whole
-- SR.
CREATE TABLE intent (
    id        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    sr        TEXT NOT NULL REFERENCES sr (uuid) ON DELETE CASCADE,
    vdi       TEXT NOT NULL,
    operation TEXT NOT NULL CHECK (json_valid(operation)),
    since     TEXT NOT NULL,
    boot_id   TEXT NOT NULL
) STRICT;
