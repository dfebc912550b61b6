//! Stranded writes: the transactions that an old primary has and the new one lacks, kept as one file that a person can
//! review, before anything is done to the old directory.
//!
//! Which they are, the log says: what was committed after the point where the new primary's history left this
//! timeline. Their rows are read from the old server itself, started apart as a standby of nobody: nobody else reaches
//! it, and it cannot write. A row is one of theirs by the transaction that it bears. Of what they deleted only the
//! places are known; the rows as they were are the new primary's. A table that was dropped, truncated or rewritten
//! afterwards has another file by then: what was done to the old one is counted, and its rows are not listed. What `TRUNCATE`
//! and changes of the schema did is not in any row; the tables that a transaction had for itself alone, as these do, are named.

use super::{
    contract::*,
    own_server::upstream,
    stranded_log::{Done, File, Log, Transaction},
};
use crate::model::ids::*;
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// The writes that only the old primary had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stranded {
    /// JSON Lines on the machine that Muster ran on: a line a transaction, then a line a row.
    pub file: PathBuf,
    pub sha256: String,
    pub transactions: u64,
    /// Rows as they left them: inserted, or updated last by one of them.
    pub rows: u64,
    /// Rows that they deleted; only their places are in the file.
    pub deleted: u64,
    /// Rows that they wrote or deleted in files that no table has any more, since it was dropped, truncated or rewritten
    /// after that: these are counted here, and not listed.
    #[serde(default)]
    pub unlisted: u64,
    /// Where the two histories part.
    #[schemars(with = "String")]
    pub from: Lsn,
    pub timeline: u32,
}

/// What is known of an old primary's log beyond the point of divergence.
pub(crate) struct Beyond {
    pub log: Log,
    pub from: Lsn,
    pub timeline: u32,
}

const DUMP: Duration = Duration::from_mins(10);
const ROWS: Duration = Duration::from_mins(10);

fn trouble(what: &str, error: &dyn std::fmt::Display) -> PortError {
    PortError::Refused(format!("{what}: {error}"))
}

/// Reads the log beyond the divergence.
pub(crate) async fn beyond(cx: &ReadCx, machine: &dyn MachineWrite, timeline: u32, from: Lsn) -> PortResult<Beyond> {
    let dump = place(cx, "log");
    machine.dump_log(timeline, from, &dump, DUMP).await?;
    let file = std::fs::File::open(&dump).map_err(|e| trouble("the log's text", &e))?;
    let mut log = Log::default();
    for line in BufReader::new(file).lines() {
        log.read(&line.map_err(|e| trouble("the log's text", &e))?);
    }
    let _ = std::fs::remove_file(&dump);
    Ok(Beyond { log, from, timeline })
}

/// A file of this step's own on this machine.
pub(crate) fn place(cx: &ReadCx, what: &str) -> PathBuf {
    let _ = std::fs::create_dir_all(&cx.scratch);
    cx.scratch.join(format!("stranded-{}.{what}", cx.step))
}

/// What an earlier attempt of this step kept, if its file is still what it was.
pub(crate) fn kept(cx: &ReadCx) -> Option<Stranded> {
    let known: Stranded = serde_json::from_slice(&std::fs::read(place(cx, "json")).ok()?).ok()?;
    (digest(&known.file).ok()? == known.sha256).then_some(known)
}

/// Puts on record that nobody can tell what is stranded, before anything is done to the directory.
pub(crate) fn cannot_tell(cx: &ReadCx, why: &str) -> PortResult<()> {
    std::fs::write(place(cx, "unknown"), why).map_err(|e| trouble("the record that it is not known what is stranded", &e))
}

/// They could be listed after all: an earlier attempt could not, and somebody put the log back.
pub(crate) fn known(cx: &ReadCx) {
    let _ = std::fs::remove_file(place(cx, "unknown"));
}

/// Why they cannot be told, if that is so.
pub(crate) fn unknown(cx: &ReadCx) -> Option<String> {
    std::fs::read_to_string(place(cx, "unknown")).ok()
}

fn digest(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hash, mut chunk) = (std::fs::File::open(path)?, Sha256::new(), vec![0; 65_536]);
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(format!("sha256:{}", hex::encode(hash.finalize())));
        }
        hash.update(chunk.get(..read).unwrap_or_default());
    }
}

/// Keeps them. The old server runs apart already.
pub(crate) async fn keep(
    cx: &ReadCx,
    machine: &dyn MachineWrite,
    beyond: &Beyond,
    name: &DatabaseName,
    region: &RegionName,
) -> Result<Stranded, Refusal> {
    let user = upstream(cx, name, region, false)?.user;
    let names = names(cx, machine, &user, &beyond.log).await?;
    let target = place(cx, "jsonl");
    let mut out = std::fs::File::create(&target).map_err(|e| trouble("the file of stranded writes", &e))?;
    let mut write = |line: &serde_json::Value| writeln!(out, "{line}").map_err(|e| trouble("the file of stranded writes", &e));
    let (mut deleted, mut unlisted) = (0, 0);
    for one in &beyond.log.committed {
        write(&transaction(one, &names))?;
        let count = |of: fn(&Owner) -> bool, what: fn(&Done) -> u64| {
            one.files.iter().filter(|(file, _)| of(&owner(&names, **file))).map(|(_, done)| what(done)).sum::<u64>()
        };
        deleted += count(|o| matches!(o, Owner::Table(..)), |done| done.deleted.len() as u64);
        unlisted += count(|o| *o == Owner::Nobody, |done| done.inserted + done.updated + done.deleted.len() as u64);
    }
    let mut rows = 0;
    for (database, tables) in by_database(&beyond.log, &names) {
        let answers = place(cx, "rows");
        let sql: String = tables.iter().map(|(table, touched)| rows_sql(table, touched)).collect();
        machine.ask(&database, &user, &sql, &answers, ROWS).await?;
        let answered = std::fs::File::open(&answers).map_err(|e| trouble("the rows", &e))?;
        for line in BufReader::new(answered).lines() {
            let mut row: serde_json::Value =
                serde_json::from_str(&line.map_err(|e| trouble("the rows", &e))?).map_err(|e| trouble("a row", &e))?;
            row["database"] = json!(database);
            write(&row)?;
            rows += 1;
        }
        let _ = std::fs::remove_file(&answers);
    }
    out.sync_all().map_err(|e| trouble("the file of stranded writes", &e))?;
    let sha256 = digest(&target).map_err(|e| trouble("the file of stranded writes", &e))?;
    let transactions = beyond.log.committed.len() as u64;
    let found = Stranded { file: target, sha256, transactions, rows, deleted, unlisted, from: beyond.from, timeline: beyond.timeline };
    let summary = serde_json::to_vec(&found).map_err(|e| trouble("the summary of stranded writes", &e))?;
    std::fs::write(place(cx, "json"), summary).map_err(|e| trouble("the summary of stranded writes", &e))?;
    Ok(found)
}

/// Whose a file of the log is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// A user's table: its database, and its name as SQL takes it.
    Table(String, String),
    /// A catalog, or out-of-line values of a table: no rows of anybody's.
    System,
    /// No relation has it any more.
    Nobody,
}

/// What the relations that are there say.
#[derive(Debug, Default)]
struct Names {
    files: BTreeMap<File, Owner>,
    /// By database and number.
    relations: BTreeMap<(u32, u32), Owner>,
}

/// Whose a file is. Catalogs that all databases share are in no database.
fn owner(names: &Names, file: File) -> Owner {
    if file.database == 0 { Owner::System } else { names.files.get(&file).cloned().unwrap_or(Owner::Nobody) }
}

/// What a relation is called in a report; nothing for indexes, out-of-line values and catalogs.
const NAME: &str = "CASE WHEN c.relkind IN ('r', 'm', 'p', 'v', 'f', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
     AND n.nspname !~ '^pg_(toast|temp)' THEN format('%I.%I', n.nspname, c.relname) ELSE '' END FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace";

/// Whose the files are that were written to, and which relations somebody had alone.
async fn names(cx: &ReadCx, machine: &dyn MachineWrite, user: &str, log: &Log) -> Result<Names, Refusal> {
    let touched: BTreeSet<File> = log.committed.iter().flat_map(|t| t.files.keys().copied()).collect();
    let alone: BTreeSet<(u32, u32)> = log.committed.iter().flat_map(|t| t.alone.iter().copied()).collect();
    let answers = place(cx, "names");
    let mut found = Names::default();
    machine.ask("postgres", user, "SELECT oid, quote_ident(datname) FROM pg_database WHERE datallowconn;", &answers, ROWS).await?;
    for line in lines(&answers)? {
        let Some((oid, name)) = line.split_once('|') else { continue };
        let database: u32 = oid.parse().map_err(|e| trouble("a database's number", &e))?;
        let plain = name.trim_matches('"').replace("\"\"", "\"");
        let files: Vec<u32> = touched.iter().filter(|f| f.database == database).map(|f| f.number).collect();
        let sql = format!("SELECT pg_relation_filenode(c.oid), {NAME}");
        for (number, owner) in asked(cx, machine, (&plain, user), (&sql, "pg_relation_filenode(c.oid)"), &files).await? {
            found.files.insert(File { database, number }, owner);
        }
        let relations: Vec<u32> = alone.iter().filter(|(of, _)| *of == database).map(|(_, relation)| *relation).collect();
        let sql = format!("SELECT c.oid, {NAME}");
        for (number, owner) in asked(cx, machine, (&plain, user), (&sql, "c.oid"), &relations).await? {
            found.relations.insert((database, number), owner);
        }
    }
    let _ = std::fs::remove_file(&answers);
    Ok(found)
}

/// What a database's relations with these numbers are.
async fn asked(
    cx: &ReadCx,
    machine: &dyn MachineWrite,
    (database, user): (&str, &str),
    (select, number): (&str, &str),
    numbers: &[u32],
) -> PortResult<Vec<(u32, Owner)>> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<String> = numbers.iter().map(u32::to_string).collect();
    let answers = place(cx, "tables");
    machine.ask(database, user, &format!("{select} WHERE {number} IN ({});", list.join(", ")), &answers, ROWS).await?;
    let mut found = Vec::new();
    for line in lines(&answers)? {
        let Some((number, table)) = line.split_once('|') else { continue };
        let number = number.parse().map_err(|e| trouble("a relation's number", &e))?;
        found.push((number, if table.is_empty() { Owner::System } else { Owner::Table(database.to_owned(), table.to_owned()) }));
    }
    let _ = std::fs::remove_file(&answers);
    Ok(found)
}

fn lines(path: &Path) -> PortResult<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|e| trouble("an answer", &e))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Blocks and transactions, by table.
type Touched = (BTreeSet<u32>, BTreeSet<u32>);

fn by_database(log: &Log, names: &Names) -> BTreeMap<String, BTreeMap<String, Touched>> {
    let mut all: BTreeMap<String, BTreeMap<String, Touched>> = BTreeMap::new();
    for one in &log.committed {
        for (file, done) in &one.files {
            let Owner::Table(database, table) = owner(names, *file) else { continue };
            let touched = all.entry(database).or_default().entry(table).or_default();
            touched.0.extend(&done.blocks);
            touched.1.insert(one.xid);
            touched.1.extend(&one.parts);
        }
    }
    all
}

/// The rows in those blocks that bear one of those transactions: fetched by their places, whatever the table's size.
fn rows_sql(table: &str, (blocks, xids): &Touched) -> String {
    let list = |numbers: &BTreeSet<u32>| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let literal = table.replace('\'', "''");
    format!(
        "SELECT jsonb_build_object('table', '{literal}', 'transaction', muster_row.xmin::text::bigint, 'place', muster_row.ctid::text, 'row', to_jsonb(muster_row)) \
         FROM ONLY {table} AS muster_row WHERE muster_row.ctid = ANY (ARRAY(SELECT format('(%s,%s)', b, o)::tid FROM unnest('{{{}}}'::bigint[]) b, \
         generate_series(1, (current_setting('block_size')::int - 24) / 28) o)) AND muster_row.xmin::text = ANY ('{{{}}}'::text[]);\n",
        list(blocks),
        list(xids)
    )
}

fn transaction(one: &Transaction, names: &Names) -> serde_json::Value {
    let (mut tables, mut gone, mut others) = (Vec::new(), Vec::new(), 0);
    for (file, done) in &one.files {
        let deleted: Vec<String> = done.deleted.iter().map(|(block, line)| format!("({block},{line})")).collect();
        let mut did = json!({ "inserted": done.inserted, "updated": done.updated, "deleted": deleted });
        match owner(names, *file) {
            Owner::System => others += 1,
            Owner::Table(database, table) => {
                (did["database"], did["table"]) = (json!(database), json!(table));
                tables.push(did);
            }
            Owner::Nobody => {
                (did["database_number"], did["file_number"]) = (json!(file.database), json!(file.number));
                gone.push(did);
            }
        }
    }
    let (mut alone, mut alone_gone) = (Vec::new(), Vec::new());
    for (database, number) in &one.alone {
        match names.relations.get(&(*database, *number)) {
            Some(Owner::Table(database, table)) => alone.push(json!({ "database": database, "table": table })),
            Some(_) => {}
            None => alone_gone.push(json!({ "database_number": database, "relation_number": number })),
        }
    }
    json!({
        "transaction": one.xid, "subtransactions": one.parts, "committed_at": one.at, "lsn": one.lsn,
        "tables": tables, "gone": gone, "catalogs_and_others": others,
        "alone": alone, "alone_gone": alone_gone,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_table_has_any_more_is_told_by_its_number() {
        let file = |database, number| File { database, number };
        let table = Owner::Table("shop".into(), "public.t".into());
        let files = [(file(5, 1), table.clone()), (file(5, 2), Owner::System)].into();
        let names = Names { files, relations: [((5, 16_384), table), ((5, 16_387), Owner::System)].into() };
        let done = Done { inserted: 3, deleted: vec![(0, 9)], ..Done::default() };
        let files = [(0, 1260), (5, 1), (5, 2), (5, 7)].map(|(database, number)| (file(database, number), done.clone())).into();
        let alone = [(5, 16_384), (5, 16_387), (5, 16_400)].into();
        let one = Transaction { xid: 7, parts: Vec::new(), at: String::new(), lsn: Lsn(1), files, alone };
        let line = transaction(&one, &names);
        assert_eq!((line["tables"][0]["table"].as_str(), line["tables"].as_array().map(Vec::len)), (Some("public.t"), Some(1)), "{line}");
        assert_eq!((line["gone"][0]["file_number"].as_u64(), line["gone"].as_array().map(Vec::len)), (Some(7), Some(1)), "{line}");
        assert_eq!(line["alone"], json!([{ "database": "shop", "table": "public.t" }]), "an index is not named: {line}");
        assert_eq!(line["alone_gone"], json!([{ "database_number": 5, "relation_number": 16_400 }]), "{line}");
        assert_eq!((line["gone"][0]["inserted"].as_u64(), line["catalogs_and_others"].as_u64()), (Some(3), Some(2)), "{line}");
    }

    #[test]
    fn a_tables_name_stays_a_name() {
        let sql = rows_sql("public.\"it's\"", &([0, 7].into(), [726].into()));
        assert!(
            sql.contains("'public.\"it''s\"'")
                && sql.contains("FROM ONLY public.\"it's\" AS")
                && sql.contains("'{0,7}'")
                && sql.contains("'{726}'"),
            "{sql}"
        );
    }
}
