-- The journal. Events are append-only; `chains` is a projection of them for quick lists.

CREATE TABLE chains (
    id          TEXT PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('run', 'drill')),
    name        TEXT NOT NULL,
    parent      TEXT,
    status      TEXT NOT NULL,
    started_at  TEXT NOT NULL,
    finished_at TEXT,
    epoch       INTEGER NOT NULL DEFAULT 0,
    owner       TEXT,
    seq         INTEGER NOT NULL DEFAULT 0,
    head        TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX chains_by_start ON chains (kind, started_at DESC, id DESC);
CREATE INDEX chains_open ON chains (status) WHERE finished_at IS NULL;
CREATE INDEX chains_by_parent ON chains (parent) WHERE parent IS NOT NULL;

-- `record` is the canonical event; `hash` is SHA-256 of exactly these bytes. The other columns are copies.
CREATE TABLE events (
    run    TEXT NOT NULL,
    seq    INTEGER NOT NULL,
    at     TEXT NOT NULL,
    actor  TEXT NOT NULL,
    epoch  INTEGER NOT NULL,
    kind   TEXT NOT NULL,
    prev   TEXT NOT NULL,
    hash   TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT;

-- The chain of heads: one record when a chain begins and one when it ends, so that a chain that was
-- removed as a whole is missed.
CREATE TABLE heads (
    n      INTEGER PRIMARY KEY,
    run    TEXT NOT NULL,
    prev   TEXT NOT NULL,
    hash   TEXT NOT NULL,
    record BLOB NOT NULL
) STRICT;

-- A resource has at most one run at a time that can change it.
CREATE TABLE locks (
    resource TEXT PRIMARY KEY,
    run      TEXT NOT NULL
) STRICT;

-- What operators ask of a run that another process owns.
CREATE TABLE inbox (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    run     TEXT NOT NULL,
    at      TEXT NOT NULL,
    actor   TEXT NOT NULL,
    command TEXT NOT NULL,
    taken   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX inbox_waiting ON inbox (run, id) WHERE taken = 0;

-- Up to which instant each schedule has been considered.
CREATE TABLE schedules (
    drill      TEXT PRIMARY KEY,
    considered TEXT NOT NULL
) STRICT;

CREATE TRIGGER events_keep BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER heads_keep BEFORE UPDATE ON heads BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER heads_stay BEFORE DELETE ON heads BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
