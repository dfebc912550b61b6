-- The journal on PostgreSQL. Events are append-only; `chains` is a projection of them for quick lists.

-- Who takes part: one lease a process, however many chains it owns. `expires_at` is by the clock of the
-- server that wrote it, and `server` says which that was: another server's clock means nothing here.
CREATE TABLE nodes (
    session    TEXT COLLATE "C" PRIMARY KEY,
    name       TEXT NOT NULL,
    serves     BOOLEAN NOT NULL,
    ttl_ms     BIGINT NOT NULL,
    server     BIGINT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
);

-- `session` is who owns the chain; none when it was let go of. `waits` when a person let go of it: then no
-- node goes on with it by itself.
CREATE TABLE chains (
    id          TEXT COLLATE "C" PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('run', 'drill')),
    name        TEXT NOT NULL,
    parent      TEXT COLLATE "C",
    status      TEXT NOT NULL,
    started_at  TEXT COLLATE "C" NOT NULL,
    finished_at TEXT,
    epoch       BIGINT NOT NULL DEFAULT 0,
    owner       TEXT,
    session     TEXT COLLATE "C",
    waits       BOOLEAN NOT NULL DEFAULT false,
    seq         BIGINT NOT NULL DEFAULT 0,
    head        TEXT NOT NULL DEFAULT ''
);

CREATE INDEX chains_by_start ON chains (kind, started_at DESC, id DESC);
CREATE INDEX chains_open ON chains (started_at, id) WHERE finished_at IS NULL;
CREATE INDEX chains_by_parent ON chains (parent) WHERE parent IS NOT NULL;

-- `record` is the canonical event; `hash` is SHA-256 of exactly these bytes. The other columns are copies.
CREATE TABLE events (
    run    TEXT COLLATE "C" NOT NULL,
    seq    BIGINT NOT NULL,
    at     TEXT NOT NULL,
    actor  TEXT NOT NULL,
    epoch  BIGINT NOT NULL,
    kind   TEXT NOT NULL,
    prev   TEXT NOT NULL,
    hash   TEXT NOT NULL,
    record BYTEA NOT NULL,
    PRIMARY KEY (run, seq)
);

-- The chain of heads: one record when a chain begins and one when it ends, so that a chain that was
-- removed as a whole is missed.
CREATE TABLE heads (
    n      BIGINT PRIMARY KEY,
    run    TEXT NOT NULL,
    prev   TEXT NOT NULL,
    hash   TEXT NOT NULL,
    record BYTEA NOT NULL
);

-- Where the chain of heads ends. Its one row is locked, last of all, by whoever adds a head: that is what
-- keeps the chain without a gap.
CREATE TABLE tail (
    one  BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
    n    BIGINT NOT NULL,
    hash TEXT NOT NULL
);
INSERT INTO tail (n, hash) VALUES (0, '');

-- A resource has at most one run at a time that can change it.
CREATE TABLE locks (
    resource TEXT COLLATE "C" PRIMARY KEY,
    run      TEXT COLLATE "C" NOT NULL
);
CREATE INDEX locks_by_run ON locks (run);

-- What operators ask of a run that another process owns.
CREATE TABLE inbox (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run     TEXT COLLATE "C" NOT NULL,
    at      TEXT NOT NULL,
    actor   TEXT NOT NULL,
    command TEXT NOT NULL,
    taken   BOOLEAN NOT NULL DEFAULT false
);

CREATE INDEX inbox_waiting ON inbox (run, id) WHERE NOT taken;

-- Up to which instant each schedule has been considered.
CREATE TABLE schedules (
    drill      TEXT PRIMARY KEY,
    considered TEXT NOT NULL
);

-- What one node at a time does, for as long as it lives.
CREATE TABLE reservations (
    what    TEXT PRIMARY KEY,
    session TEXT COLLATE "C" NOT NULL
);

CREATE FUNCTION journal_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the journal is append-only';
END
$$;

CREATE TRIGGER events_keep BEFORE UPDATE ON events FOR EACH ROW EXECUTE FUNCTION journal_is_append_only();
CREATE TRIGGER events_stay BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION journal_is_append_only();
CREATE TRIGGER events_whole BEFORE TRUNCATE ON events FOR EACH STATEMENT EXECUTE FUNCTION journal_is_append_only();
CREATE TRIGGER heads_keep BEFORE UPDATE ON heads FOR EACH ROW EXECUTE FUNCTION journal_is_append_only();
CREATE TRIGGER heads_stay BEFORE DELETE ON heads FOR EACH ROW EXECUTE FUNCTION journal_is_append_only();
CREATE TRIGGER heads_whole BEFORE TRUNCATE ON heads FOR EACH STATEMENT EXECUTE FUNCTION journal_is_append_only();
