//! Is what a restored server holds good? Each check is named in the result, with what it found: the pages' checksums, the
//! structure of tables and indexes, rows and contents of tables, and the operator's own questions, such as for a row that
//! was planted.

use super::recovered::Stuck;
use crate::providers::servers::{Running, ServerSpec, Servers};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(2 * 3600);
const TOLD: usize = 300;

/// What is asked of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checks {
    /// Every page against its checksum, with the server stopped (`pg_checksums`); where the cluster has them.
    #[serde(default = "yes")]
    pub pages: bool,
    /// Tables and indexes of all databases (`pg_amcheck`); where the program and the extension are there.
    #[serde(default = "yes")]
    pub structure: bool,
    /// The database in which the tables and the questions are.
    #[serde(default = "postgres")]
    pub database: String,
    /// Tables whose rows are counted and whose contents are summed.
    #[serde(default)]
    pub tables: Vec<Rows>,
    /// Questions with one answer.
    #[serde(default)]
    pub sql: Vec<Question>,
}

fn yes() -> bool {
    true
}
fn postgres() -> String {
    "postgres".to_owned()
}

impl Default for Checks {
    fn default() -> Self {
        Self { pages: true, structure: true, database: postgres(), tables: Vec::new(), sql: Vec::new() }
    }
}

#[allow(clippy::struct_field_names)] // the fields are words of the language
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// `orders`, or `sales.orders`.
    pub table: String,
    /// It has at least so many rows.
    #[serde(default)]
    pub rows: u64,
    /// Its content, as an earlier check of the same rows gave it: whatever order the rows come in.
    #[serde(default)]
    pub content: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub name: String,
    pub sql: String,
    /// What the first column of the first row must be; `t` when left out.
    #[serde(default = "truth")]
    pub expect: String,
}

fn truth() -> String {
    "t".to_owned()
}

/// What one check came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Checked {
    pub name: String,
    /// `null`: it could not be made here, and why.
    pub ok: Option<bool>,
    pub found: String,
}

impl Checked {
    fn new(name: impl Into<String>, ok: Option<bool>, found: impl Into<String>) -> Self {
        let found: String = found.into();
        Self { name: name.into(), ok, found: found.trim().chars().take(TOLD).collect() }
    }
}

/// A table's name, so that nothing in it is anything else.
fn quoted(name: &str) -> String {
    name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect::<Vec<_>>().join(".")
}

/// With the server running.
pub(crate) async fn running(checks: &Checks, servers: &dyn Servers, spec: &ServerSpec, server: &Running) -> Result<Vec<Checked>, Stuck> {
    let mut all = Vec::new();
    if checks.structure {
        all.push(structure(servers, spec, server).await?);
    }
    for table in &checks.tables {
        all.push(contents(checks, servers, server, table).await);
    }
    for question in &checks.sql {
        let name = format!("sql: {}", question.name);
        all.push(match servers.query(server, &checks.database, &question.sql, LONG).await {
            Err(error) => Checked::new(name, Some(false), error.to_string()),
            Ok(rows) => {
                let found = rows.first().and_then(|row| row.first()?.clone()).unwrap_or_else(|| "nothing".to_owned());
                Checked::new(name, Some(found == question.expect), found)
            }
        });
    }
    Ok(all)
}

async fn structure(servers: &dyn Servers, spec: &ServerSpec, server: &Running) -> Result<Checked, Stuck> {
    const NAME: &str = "structure";
    let there = servers.query(server, "postgres", "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'", LONG).await?;
    if there.first().and_then(|row| row.first()?.clone()).as_deref() != Some("1") {
        return Ok(Checked::new(NAME, None, "the extension amcheck is not installed here"));
    }
    let args = ["--all", "--install-missing", "--heapallindexed", "-U", &server.role, "-p", &server.port.to_string(), "-h"];
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).chain([server.run.display().to_string()]).collect();
    Ok(match servers.tool(spec, "pg_amcheck", &args, LONG).await? {
        None => Checked::new(NAME, None, "the program pg_amcheck is not installed here"),
        Some(ended) if ended.ok => Checked::new(NAME, Some(true), "tables and indexes of all databases are sound"),
        Some(ended) => Checked::new(NAME, Some(false), ended.output),
    })
}

/// How values are written as text, whatever the server, the database or the role has set: the same row has one digest.
pub(crate) const FORMS: &str = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1; \
     SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmlbinary = 'base64'; SET search_path = \"$user\", public";

/// The number of a table's rows and the sum of their digests, as text. Each is cut to 60 bits and summed: the order does
/// not matter, and a row that is there twice does.
fn question(table: &str) -> String {
    let sum = "coalesce(sum(('x' || substr(md5(t::text), 1, 15))::bit(60)::bigint), 0)::text";
    format!("SELECT count(*)::text, {sum} FROM {} t", quoted(table))
}

/// Tables as they are locked, and what is asked of each.
pub(crate) fn asked(tables: &[String]) -> (Vec<String>, Vec<String>) {
    tables.iter().map(|table| (quoted(table), question(table))).unzip()
}

/// What a table held when it was put on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recorded {
    pub table: String,
    pub rows: u64,
    pub content: String,
}

impl Recorded {
    /// From the answer to [`question`].
    pub(crate) fn of(table: &str, row: &[Option<String>]) -> Self {
        let cell = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        Self { table: table.to_owned(), rows: cell(0).parse().unwrap_or_default(), content: format!("{}:{}", cell(0), cell(1)) }
    }
}

/// Has the restored server what was put on record at the position that it was led to?
pub(crate) async fn as_recorded(checks: &Checks, servers: &dyn Servers, server: &Running, recorded: &[Recorded]) -> Vec<Checked> {
    let mut all = Vec::new();
    for table in recorded {
        let name = format!("recorded: {}", table.table);
        let asked = servers.query(server, &checks.database, &format!("{FORMS}; {}", question(&table.table)), LONG).await;
        all.push(match asked {
            Err(error) => Checked::new(name, Some(false), error.to_string()),
            Ok(rows) => {
                let now = Recorded::of(&table.table, rows.first().map_or(&[], Vec::as_slice));
                let told = format!("{} rows, content {}", now.rows, now.content);
                let differs = format!("{told}; on record are {} rows, content {}", table.rows, table.content);
                Checked::new(name, Some(now == *table), if now == *table { told } else { differs })
            }
        });
    }
    all
}

async fn contents(checks: &Checks, servers: &dyn Servers, server: &Running, table: &Rows) -> Checked {
    let name = format!("table: {}", table.table);
    let ask = format!("{FORMS}; {}", question(&table.table));
    let rows = match servers.query(server, &checks.database, &ask, LONG).await {
        Err(error) => return Checked::new(name, Some(false), error.to_string()),
        Ok(rows) => rows,
    };
    let cell = |at: usize| rows.first().and_then(|row| row.get(at)?.clone()).unwrap_or_default();
    let (count, content) = (cell(0), format!("{}:{}", cell(0), cell(1)));
    let enough = count.parse::<u64>().is_ok_and(|count| count >= table.rows);
    let same = table.content.as_ref().is_none_or(|before| *before == content);
    Checked::new(name, Some(enough && same), format!("{count} rows, content {content}"))
}

/// With the server stopped, cleanly.
pub(crate) async fn stopped(checks: &Checks, servers: &dyn Servers, spec: &ServerSpec) -> Result<Vec<Checked>, Stuck> {
    const NAME: &str = "pages";
    if !checks.pages {
        return Ok(Vec::new());
    }
    let args = ["--check".to_owned(), "-D".to_owned(), spec.data.display().to_string()];
    Ok(vec![match servers.tool(spec, "pg_checksums", &args, LONG).await? {
        None => Checked::new(NAME, None, "the program pg_checksums is not installed here"),
        Some(ended) if ended.ok => Checked::new(NAME, Some(true), "every page has its checksum"),
        Some(ended) if ended.output.contains("not enabled") => Checked::new(NAME, None, "the cluster has no checksums"),
        Some(ended) => Checked::new(NAME, Some(false), ended.output),
    }])
}

/// What is not as it should be.
#[must_use]
pub(crate) fn wrong(checked: &[Checked]) -> Option<String> {
    let wrong: Vec<String> = checked.iter().filter(|one| one.ok == Some(false)).map(|one| format!("{}: {}", one.name, one.found)).collect();
    (!wrong.is_empty()).then(|| wrong.join("; "))
}
