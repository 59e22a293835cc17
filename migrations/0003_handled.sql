-- Messages of the queue that are done: one that is delivered again is answered from here and not
-- done twice. `digest` is of the reply queue and the payload, for a switch that forgot its queues
-- counts its ids anew. The newest few thousand rows are kept (plugin/src/state/handled.rs).
CREATE TABLE handled (
    number  INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    message INTEGER NOT NULL,
    digest  TEXT NOT NULL,
    answer  TEXT,
    UNIQUE (message, digest)
) STRICT;
