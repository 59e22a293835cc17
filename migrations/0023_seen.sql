-- Whether a datapath's domain was seen alive: only then can it be gone.
ALTER TABLE datapath ADD COLUMN seen INTEGER NOT NULL DEFAULT 0 CHECK (seen IN (0, 1));
