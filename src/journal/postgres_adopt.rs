//! Chains of another journal, taken into the shared one: rows inserted as they are, and a head that says where
//! they came from. What may be taken in was judged before ([`super::adopt::judge`]).

use super::{
    adopt::{Adopted, Origin},
    chain::{EventRow, seal_adopted},
    postgres_link::Trouble,
    postgres_rows::{insert_head, kind_word, signed, sortable},
    *,
};
use sqlx::PgConnection;

/// One chain, or the rest of one that is here in part. Nobody owns it, and no node goes on with it.
pub async fn adopt(conn: &mut PgConnection, one: &Adopted, origin: &Origin) -> Result<(), Trouble> {
    let row = &one.row;
    let put = "INSERT INTO chains (id, kind, name, parent, status, started_at, finished_at, epoch, owner, waits, seq, head) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8, true, $9, $10) ON CONFLICT (id) DO UPDATE SET status = excluded.status, \
               finished_at = excluded.finished_at, owner = excluded.owner, seq = excluded.seq, head = excluded.head \
               WHERE $11 AND chains.session IS NULL";
    let put = sqlx::query(put)
        .bind(row.id.as_str())
        .bind(kind_word(row.kind))
        .bind(&row.name)
        .bind(row.parent.as_ref().map(RunId::as_str))
        .bind(&row.status)
        .bind(sortable(row.started_at))
        .bind(row.finished_at.map(sortable))
        .bind(&row.owner)
        .bind(signed(row.seq))
        .bind(&row.head)
        .bind(one.known);
    if put.execute(&mut *conn).await?.rows_affected() != 1 {
        return Err(JournalError::Exists { run: row.id.clone() }.into());
    }
    for event in &one.events {
        insert_event(conn, event).await?;
    }
    insert_head(conn, row, |n, prev| seal_adopted(n, prev, row, origin)).await
}

async fn insert_event(conn: &mut PgConnection, event: &EventRow) -> Result<(), Trouble> {
    let insert = "INSERT INTO events (run, seq, at, actor, epoch, kind, prev, hash, record) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    let insert = sqlx::query(insert)
        .bind(event.run.as_str())
        .bind(signed(event.seq))
        .bind(&event.at)
        .bind(&event.actor)
        .bind(signed(event.epoch))
        .bind(&event.kind)
        .bind(&event.prev)
        .bind(&event.hash)
        .bind(&event.record);
    insert.execute(conn).await?;
    Ok(())
}
