//! The statements of the shared journal that take more than a line, and how its rows are read.

use super::{chain::*, postgres_link::Trouble, *};
use sqlx::{Connection as _, PgConnection, Row, postgres::PgRow};

/// A chain's row, with its owner as `living` if the owner's lease has not run out. What was taken in from
/// another journal says so in place of an owner.
macro_rules! concat_living {
    ($rest:literal) => {
        concat!(
            "SELECT *, CASE WHEN session IS NULL AND starts_with(owner, 'imported from ') THEN owner WHEN EXISTS (SELECT 1 FROM nodes WHERE nodes.session = chains.session \
             AND nodes.expires_at > clock_timestamp()) THEN owner END AS living FROM chains ",
            $rest
        )
    };
}
pub(super) use concat_living;

/// What follows an event, only if the chain still is what its owner knows it to be.
const APPEND: &str = "WITH mine AS (UPDATE chains SET seq = $1, head = $2, status = $3, finished_at = $4 \
                      WHERE id = $5 AND epoch = $6 AND session = $7 AND seq = $8 AND head = $9 RETURNING id) \
                      INSERT INTO events (run, seq, at, actor, epoch, kind, prev, hash, record) \
                      SELECT mine.id, e.seq, e.at, e.actor, $6, e.kind, e.prev, e.hash, e.record \
                      FROM mine, unnest($10::bigint[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::bytea[]) \
                      AS e (seq, at, actor, kind, prev, hash, record)";

pub fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub fn kind_word(kind: ChainKind) -> &'static str {
    if kind == ChainKind::Drill { "drill" } else { "run" }
}

/// An instant that sorts as text.
pub fn sortable(at: jiff::Timestamp) -> String {
    format!("{at:.9}")
}

pub fn chain_row(row: &PgRow) -> Result<ChainRow, sqlx::Error> {
    let time = |text: String| text.parse().map_err(|e| sqlx::Error::Decode(Box::new(e)));
    let kind = if row.try_get::<String, _>("kind")? == "drill" { ChainKind::Drill } else { ChainKind::Run };
    Ok(ChainRow {
        id: RunId(row.try_get("id")?),
        kind,
        name: row.try_get("name")?,
        parent: row.try_get::<Option<String>, _>("parent")?.map(RunId),
        status: row.try_get("status")?,
        started_at: time(row.try_get("started_at")?)?,
        finished_at: row.try_get::<Option<String>, _>("finished_at")?.map(time).transpose()?,
        seq: row.try_get::<i64, _>("seq")?.unsigned_abs(),
        head: row.try_get("head")?,
        owner: row.try_get("living")?,
    })
}

/// A chain's row before its first event; false when there is such a chain.
pub async fn insert_chain(conn: &mut PgConnection, row: &ChainRow, owner: &str, session: &str) -> Result<bool, Trouble> {
    let insert = "INSERT INTO chains (id, kind, name, parent, status, started_at, epoch, owner, session) \
                  VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $8) ON CONFLICT DO NOTHING";
    let insert = sqlx::query(insert)
        .bind(row.id.as_str())
        .bind(kind_word(row.kind))
        .bind(&row.name)
        .bind(row.parent.as_ref().map(RunId::as_str))
        .bind(&row.status)
        .bind(sortable(row.started_at))
        .bind(owner)
        .bind(session);
    Ok(insert.execute(conn).await?.rows_affected() == 1)
}

/// In sorted order, so that two that begin at the same time never wait for each other.
pub async fn take_locks(conn: &mut PgConnection, chain: &NewChain) -> Result<(), Trouble> {
    let mut locks: Vec<_> = chain.locks.iter().collect();
    locks.sort();
    for resource in locks {
        while let Some(holder) = take_lock(conn, resource, &chain.id).await? {
            // Who held it may have let go between the two looks: then it is asked for again.
            if let Some(holder) = holder {
                return Err(JournalError::Locked { resource: resource.clone(), holder }.into());
            }
        }
    }
    Ok(())
}

/// `None` when it is ours, else who has it, if that can be told.
async fn take_lock(conn: &mut PgConnection, resource: &Resource, run: &RunId) -> Result<Option<Option<RunId>>, Trouble> {
    let taken = sqlx::query("INSERT INTO locks (resource, run) VALUES ($1, $2) ON CONFLICT DO NOTHING");
    if taken.bind(&resource.0).bind(run.as_str()).execute(&mut *conn).await?.rows_affected() == 1 {
        return Ok(None);
    }
    let holder = sqlx::query_scalar("SELECT run FROM locks WHERE resource = $1").bind(&resource.0);
    Ok(Some(holder.fetch_optional(conn).await?.map(RunId)))
}

/// The events, and the chain's row brought up to them; false when the chain is not what `known` says.
pub async fn append_events(
    conn: &mut PgConnection,
    known: &ChainRow,
    row: &ChainRow,
    (epoch, session): (u64, &str),
    sealed: &[Sealed],
) -> Result<bool, Trouble> {
    let text = |get: fn(&Sealed) -> String| sealed.iter().map(get).collect::<Vec<_>>();
    let append = sqlx::query(APPEND)
        .bind(signed(row.seq))
        .bind(&row.head)
        .bind(&row.status)
        .bind(row.finished_at.map(sortable))
        .bind(row.id.as_str())
        .bind(signed(epoch))
        .bind(session)
        .bind(signed(known.seq))
        .bind(&known.head)
        .bind(sealed.iter().map(|one| signed(one.stored.event.seq)).collect::<Vec<_>>())
        .bind(text(|one| one.stored.event.at.to_string()))
        .bind(text(|one| one.stored.event.actor.clone()))
        .bind(text(|one| one.kind.clone()))
        .bind(text(|one| one.stored.event.prev.clone()))
        .bind(text(|one| one.stored.hash.clone()))
        .bind(sealed.iter().map(|one| one.record.clone()).collect::<Vec<_>>());
    Ok(append.execute(conn).await?.rows_affected() > 0)
}

/// What follows the end of a chain: its locks are free, and the chain of heads knows.
pub async fn finish(conn: &mut PgConnection, row: &ChainRow) -> Result<(), Trouble> {
    sqlx::query("DELETE FROM locks WHERE run = $1").bind(row.id.as_str()).execute(&mut *conn).await?;
    add_head(conn, row, true).await
}

/// One more record in the chain of heads. The row of `tail` is locked until the commit.
pub async fn add_head(conn: &mut PgConnection, row: &ChainRow, ended: bool) -> Result<(), Trouble> {
    insert_head(conn, row, |n, prev| seal_head(n, prev, row, ended)).await
}

/// The same, sealed by the caller from the number and the hash before it.
pub async fn insert_head(
    conn: &mut PgConnection,
    row: &ChainRow,
    sealed: impl FnOnce(u64, &str) -> (Vec<u8>, String),
) -> Result<(), Trouble> {
    let (last, prev) = sqlx::query_as::<_, (i64, String)>("SELECT n, hash FROM tail FOR UPDATE").fetch_one(&mut *conn).await?;
    let n = last + 1;
    let (record, hash) = sealed(n.unsigned_abs(), &prev);
    let add =
        "WITH moved AS (UPDATE tail SET n = $1, hash = $4) INSERT INTO heads (n, run, prev, hash, record) VALUES ($1, $2, $3, $4, $5)";
    sqlx::query(add).bind(n).bind(row.id.as_str()).bind(&prev).bind(&hash).bind(&record).execute(conn).await?;
    Ok(())
}

/// One event, if its bytes are what their hash says.
pub fn stored(run: &RunId, row: &PgRow) -> Result<Stored, JournalError> {
    let seq = row.get::<i64, _>(0).unsigned_abs();
    let (hash, record): (String, Vec<u8>) = (row.get(1), row.get(2));
    // What is no hash is none that the bytes can have.
    open_record(run, seq, &hex::decode(hash).unwrap_or_default(), &record)
}

pub fn letter(row: &PgRow) -> Option<Letter> {
    let command = serde_json::from_str(&row.get::<String, _>(2)).ok()?;
    Some(Letter { id: row.get(0), actor: row.get(1), command })
}

/// Chains that a node may go on with: their owner is gone, or let go of them as a node that serves, and no
/// person has to decide about them. Runs of a drill go on with the drill.
pub async fn orphans(conn: &mut PgConnection, server: i64, session: &str, held: &[String]) -> Result<Orphans, Trouble> {
    // A session that another server granted has its whole length from when this one first looks at it.
    let judge = "UPDATE nodes SET server = $1, expires_at = clock_timestamp() + ttl_ms * interval '1 millisecond' WHERE server <> $1";
    sqlx::query(judge).bind(server).execute(&mut *conn).await?;
    let left = concat_living!(
        "WHERE finished_at IS NULL AND NOT waits AND (kind = 'drill' OR parent IS NULL) \
         AND status NOT IN ('paused', 'waiting_approval', 'indeterminate') \
         AND CASE WHEN session IS NULL THEN true WHEN session = $1 THEN id <> ALL($2) \
         ELSE NOT EXISTS (SELECT 1 FROM nodes WHERE nodes.session = chains.session AND nodes.expires_at > clock_timestamp()) END \
         ORDER BY started_at, id LIMIT 1000"
    );
    let rows = sqlx::query(left).bind(session).bind(held).fetch_all(&mut *conn).await?;
    let rows = rows.iter().map(|row| Ok(chain_row(row)?)).collect::<Result<_, Trouble>>()?;
    let nodes = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM nodes WHERE serves AND expires_at > clock_timestamp()");
    let nodes = nodes.fetch_one(conn).await?;
    Ok(Orphans { rows, nodes: usize::try_from(nodes).unwrap_or(1) })
}

/// Reserves something for this session, unless another one that lives has it.
pub async fn reserve(conn: &mut PgConnection, what: &str, session: &str) -> Result<bool, Trouble> {
    let reserve = "INSERT INTO reservations (what, session) VALUES ($1, $2) ON CONFLICT (what) DO UPDATE SET session = excluded.session \
                   WHERE reservations.session = excluded.session OR NOT EXISTS (SELECT 1 FROM nodes \
                   WHERE nodes.session = reservations.session AND nodes.expires_at > clock_timestamp())";
    Ok(sqlx::query(reserve).bind(what).bind(session).execute(conn).await?.rows_affected() == 1)
}

/// The whole, or these chains, in one snapshot, so that a run in progress does not look like damage.
pub async fn dump(conn: &mut PgConnection, only: Option<&[RunId]>) -> Result<Dump, Trouble> {
    let only = only.map(|only| only.iter().map(|run| run.as_str().to_owned()).collect::<Vec<_>>());
    let mut tx = conn.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let rows = "SELECT *, owner AS living FROM chains WHERE $1::text[] IS NULL OR id = ANY($1) ORDER BY started_at, id";
    let rows = sqlx::query(rows).bind(&only).fetch_all(&mut *tx).await?;
    let events = "SELECT * FROM events WHERE $1::text[] IS NULL OR run = ANY($1) ORDER BY run, seq";
    let events = sqlx::query(events).bind(&only).fetch_all(&mut *tx).await?;
    let heads = match only {
        None => Some(sqlx::query("SELECT * FROM heads ORDER BY n").fetch_all(&mut *tx).await?),
        Some(_) => None,
    };
    tx.rollback().await?;
    let rows = rows.iter().map(|row| Ok(chain_row(row)?)).collect::<Result<_, Trouble>>()?;
    Ok(Dump { rows, events: events.iter().map(event_row).collect(), heads: heads.map(|heads| heads.iter().map(head_row).collect()) })
}

fn event_row(row: &PgRow) -> EventRow {
    EventRow {
        run: RunId(row.get("run")),
        seq: row.get::<i64, _>("seq").unsigned_abs(),
        at: row.get("at"),
        actor: row.get("actor"),
        epoch: row.get::<i64, _>("epoch").unsigned_abs(),
        kind: row.get("kind"),
        prev: row.get("prev"),
        hash: row.get("hash"),
        record: row.get("record"),
    }
}

fn head_row(row: &PgRow) -> HeadRow {
    HeadRow {
        n: row.get::<i64, _>("n").unsigned_abs(),
        run: RunId(row.get("run")),
        prev: row.get("prev"),
        hash: row.get("hash"),
        record: row.get("record"),
    }
}
