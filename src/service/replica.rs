//! `replica verify`: is the replica really there? Finds the two servers, in the estate or by their addresses, and lets
//! `actions` compare them. What has been compared is kept in the state directory, table by table as it is done, so that a
//! verification that was stopped can be gone on with.

use super::{Muster, ServiceError};
pub use crate::actions::replica_report::{Difference, Kind, TableReport, TableState, Verdict};
use crate::actions::{
    patroni,
    replica::Note,
    replica_load::{Bounds, Stand, Watcher},
    replica_report::Report,
    replica_verify::{Ask, verify},
};
use crate::model::estate::Estate;
use crate::providers::{
    clock,
    port::{SqlRead, WorldRead},
    postgres::{Postgres, Settings},
    world::World,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// What somebody asked for.
#[derive(Clone, Debug)]
pub struct VerifyReplica {
    pub database: Option<String>,
    pub primary: Option<String>,
    pub standby: Option<String>,
    pub primary_url: Option<SecretString>,
    pub standby_url: Option<SecretString>,
    pub tables: Vec<String>,
    /// Percent of the time that each server may be busy with this.
    pub max_load: u8,
    pub state_only: bool,
    pub resume: bool,
    /// How many differing rows of a table are listed.
    pub limit: usize,
    /// How long rows may take to settle.
    pub settle: Duration,
}

/// What is told while it goes on.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaTold {
    Progress(Stand),
    Table(TableReport),
}

pub type Teller = Arc<dyn Fn(&ReplicaTold) + Send + Sync>;

#[derive(Clone, Debug, Serialize)]
pub struct ReplicaReport {
    pub database: String,
    /// A region of the estate, or an address; `null` when none could be asked.
    pub primary: Option<String>,
    pub standby: String,
    #[serde(flatten)]
    pub report: Report,
    pub started_at: String,
    pub duration_ms: u64,
}

/// A server, and how it is called.
struct Named {
    name: String,
    sql: Arc<dyn SqlRead>,
}

struct Two {
    database: String,
    primary: Option<Named>,
    standby: Named,
    /// The estate's choice.
    tables: Vec<String>,
    /// What else is worth knowing of the two.
    notes: Vec<Note>,
}

impl Muster {
    pub async fn verify_replica(&self, asked: &VerifyReplica, tell: Teller) -> Result<ReplicaReport, ServiceError> {
        let (began, started_at) = (self.clock.monotonic(), self.clock.now());
        let two = match (&asked.primary_url, &asked.standby_url) {
            (Some(primary), Some(standby)) => self.by_urls(primary, standby)?,
            (None, None) => self.by_estate(asked).await?,
            _ => {
                return Err(ServiceError::Usage(
                    "give both --primary-url and --standby-url, or neither and a database of the estate".into(),
                ));
            }
        };
        let tables = if asked.tables.is_empty() { two.tables.clone() } else { asked.tables.clone() };
        let content = !asked.state_only;
        let mut record = Record::new(&self.state, &two);
        let done = if content { record.begin(&two, asked.resume).await? } else { Vec::new() };
        let watcher = Looking { tell, record: Mutex::new(record), stop: Arc::default() };
        let heed = self.heed_replica(watcher.stop.clone());

        let bounds = Bounds {
            clock: self.clock.clone(),
            // As fast as it goes: each server may have some questions at once.
            workers: if asked.max_load >= 100 { 4 } else { 1 },
            max_load: asked.max_load,
            until: None,
            settle: asked.settle,
            limit: asked.limit,
            seed: seed()?,
        };
        let ask = Ask { tables, structure: content, content, done };
        let report = verify(two.primary.as_ref().map(|p| &*p.sql), &*two.standby.sql, &ask, &bounds, &watcher).await;
        heed.abort();
        let mut report = report?;
        report.notes.extend(two.notes);
        if content && !report.interrupted && report.tables.is_some() {
            watcher.record.lock().unwrap_or_else(PoisonError::into_inner).end();
        }
        Ok(ReplicaReport {
            database: two.database,
            primary: two.primary.map(|p| p.name),
            standby: two.standby.name,
            report,
            started_at: crate::model::time::rfc3339_ms(started_at),
            duration_ms: self.clock.monotonic().saturating_sub(began).as_millis() as u64,
        })
    }

    fn heed_replica(&self, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
        let mut interrupt = self.interrupt.clone();
        tokio::spawn(async move {
            if interrupt.wait_for(|interrupted| *interrupted).await.is_ok() {
                stop.store(true, Ordering::Relaxed);
            }
        })
    }

    fn by_urls(&self, primary: &SecretString, standby: &SecretString) -> Result<Two, ServiceError> {
        let (primary, standby) = (self.at_url(primary, "MUSTER_PRIMARY_URL")?, self.at_url(standby, "MUSTER_STANDBY_URL")?);
        Ok(Two { database: standby.0, primary: Some(primary.1), standby: standby.1, tables: Vec::new(), notes: Vec::new() })
    }

    fn at_url(&self, url: &SecretString, variable: &str) -> Result<(String, Named), ServiceError> {
        let wrong =
            |why: &str| ServiceError::Usage(format!("{why}: write postgres://USER@HOST[:PORT]/DATABASE (the URL is not repeated here)"));
        let parsed = url::Url::parse(url.expose_secret()).map_err(|_| wrong("that is no URL"))?;
        if !matches!(parsed.scheme(), "postgres" | "postgresql") {
            return Err(wrong("the URL is not one of PostgreSQL"));
        }
        let host =
            parsed.host_str().filter(|h| !h.is_empty()).ok_or_else(|| wrong("the URL has no host"))?.trim_matches(['[', ']']).to_owned();
        let plain = |text: &str| percent(text).ok_or_else(|| wrong("the URL has a part that is not UTF-8"));
        let user = Some(parsed.username()).filter(|u| !u.is_empty()).map_or(Ok("postgres".to_owned()), plain)?;
        let database = Some(parsed.path().trim_matches('/')).filter(|d| !d.is_empty()).map_or(Ok("postgres".to_owned()), plain)?;
        let password = parsed.password().map(plain).transpose()?;
        if password.is_some() && std::env::var(variable).is_err() {
            let text = format!("a password on the command line can be seen by every user of this machine: put the URL into {variable}");
            return Err(ServiceError::Usage(text));
        }
        let port = parsed.port().unwrap_or(5432);
        let name = format!("{host}:{port}/{database}");
        let settings = Settings {
            label: name.clone(),
            database: database.clone(),
            user,
            password: password.map(SecretString::from),
            host: Some(host),
            port: Some(port),
            instance: None,
        };
        Ok((database, Named { name, sql: Arc::new(Postgres::new(settings, None, self.clock.clone())) }))
    }

    async fn by_estate(&self, asked: &VerifyReplica) -> Result<Two, ServiceError> {
        let estate = self.estate()?;
        let name = one_of(&estate, asked.database.as_deref())?;
        let world = World::new(Arc::new(estate.clone()), self.clock.clone());
        let database =
            estate.databases.get(name.as_str()).ok_or_else(|| ServiceError::Usage(format!("the estate has no database `{name}`")))?;
        let mut regions = Vec::new();
        for region in database.instances.keys() {
            regions.push(Named { name: region.to_string(), sql: world.sql(&name, region.as_str())? });
        }
        let known = |wanted: &Option<String>| match wanted {
            Some(region) if !database.instances.contains_key(region.as_str()) => {
                Err(ServiceError::Usage(format!("database `{name}` has no instance in region `{region}`")))
            }
            _ => Ok(()),
        };
        known(&asked.primary)?;
        known(&asked.standby)?;
        let (primary, standby) = roles(&name, regions, asked).await?;
        let both: Vec<&str> = [Some(&standby), primary.as_ref()].into_iter().flatten().map(|n| n.name.as_str()).collect();
        let notes = patroni::notes(&world, database, &name, &both).await;
        Ok(Two { database: name, primary, standby, tables: database.tables.clone(), notes })
    }
}

fn seed() -> Result<i64, ServiceError> {
    let bytes = clock::random().map_err(|e| ServiceError::Usage(format!("the operating system gives no random bytes: {e}")))?;
    Ok(bytes.first_chunk().map_or(0, |some| i64::from_le_bytes(*some)))
}

/// A percent-encoded part of a URL.
fn percent(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

fn one_of(estate: &Estate, asked: Option<&str>) -> Result<String, ServiceError> {
    let all: Vec<String> = estate.databases.keys().map(ToString::to_string).collect();
    match (asked, all.as_slice()) {
        (Some(name), _) if all.iter().any(|known| known == name) => Ok(name.to_owned()),
        (Some(name), _) => Err(ServiceError::Usage(format!("the estate has no database `{name}`; it has: {}", all.join(", ")))),
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(ServiceError::Usage(format!("which database? The estate has: {}", all.join(", ")))),
    }
}

/// What a server is, as it says itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Primary,
    Replica,
    Silent,
}

/// Which is the primary and which the replica, of those that were not named.
async fn roles(database: &str, regions: Vec<Named>, asked: &VerifyReplica) -> Result<(Option<Named>, Named), ServiceError> {
    let mut known = Vec::new();
    for server in regions {
        let role = match server.sql.state().await {
            Ok(state) if state.in_recovery => Role::Replica,
            // A logical replica is one that subscribes.
            Ok(_) => match server.sql.replication().await {
                Ok(told) if !told.subscriptions.is_empty() => Role::Replica,
                _ => Role::Primary,
            },
            Err(_) => Role::Silent,
        };
        known.push((server, role));
    }
    let described: Vec<String> = known.iter().map(|(server, role)| format!("{} {}", server.name, role.words())).collect();
    let mut pick = |named: &Option<String>, role: Role, other: &Option<String>| {
        let fits = |(server, is): &(Named, Role)| match named {
            Some(name) => server.name == *name,
            None => *is == role && Some(&server.name) != other.as_ref(),
        };
        known.iter().position(fits).map(|at| known.remove(at).0)
    };
    let standby = pick(&asked.standby, Role::Replica, &asked.primary);
    let primary = pick(&asked.primary, Role::Primary, &asked.standby);
    match standby {
        Some(standby) => Ok((primary, standby)),
        // Of two, the other one.
        None if known.len() == 1 && asked.primary.is_some() => Ok((primary, known.remove(0).0)),
        None => Err(ServiceError::Usage(format!(
            "none of the instances of `{database}` is a standby ({}): say with --primary REGION and --standby REGION which is which",
            described.join(", ")
        ))),
    }
}

impl Role {
    fn words(self) -> &'static str {
        match self {
            Self::Primary => "accepts writes",
            Self::Replica => "is a replica",
            Self::Silent => "does not answer",
        }
    }
}

struct Looking {
    tell: Teller,
    record: Mutex<Record>,
    stop: Arc<AtomicBool>,
}

impl Watcher for Looking {
    fn progress(&self, stand: &Stand) {
        (self.tell)(&ReplicaTold::Progress(stand.clone()));
    }
    fn finished(&self, report: &TableReport) {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).add(report);
        (self.tell)(&ReplicaTold::Table(report.clone()));
    }
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// What has been compared: a line about the two servers, then one a table. Gone when a verification has come to its end.
struct Record {
    path: PathBuf,
    file: Option<std::fs::File>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Head {
    version: u32,
    primary: String,
    standby: String,
    system_identifier: String,
}

impl Record {
    fn new(state: &Path, two: &Two) -> Self {
        let plain = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c), "_");
        let name = format!("{}-{}.jsonl", plain(&two.database), plain(&two.standby.name));
        Self { path: state.join("replica").join(name), file: None }
    }

    /// Opens it; the tables that an earlier verification of the same two servers found equal, if they are wanted.
    async fn begin(&mut self, two: &Two, resume: bool) -> Result<Vec<TableReport>, ServiceError> {
        let Some(primary) = &two.primary else { return Ok(Vec::new()) };
        let identifier = match two.standby.sql.state().await {
            Ok(state) => state.system_identifier,
            // That it does not answer is the verification's to tell.
            Err(_) => return Ok(Vec::new()),
        };
        let head = Head { version: 1, primary: primary.name.clone(), standby: two.standby.name.clone(), system_identifier: identifier };
        let done = if resume { self.read(&head)? } else { Vec::new() };
        let place = self.path.display().to_string();
        let failed = |e: std::io::Error| ServiceError::Usage(format!("{place} cannot be written, where the progress is kept: {e}"));
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut file = std::fs::File::create(&self.path).map_err(failed)?;
        writeln!(file, "{}", serde_json::to_string(&head).unwrap_or_default()).map_err(failed)?;
        self.file = Some(file);
        done.iter().for_each(|report| self.add(report));
        Ok(done)
    }

    fn read(&self, head: &Head) -> Result<Vec<TableReport>, ServiceError> {
        let place = self.path.display();
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(ServiceError::Usage(format!("there is nothing to resume: {place} is not there; leave --resume out")));
            }
            Err(e) => return Err(ServiceError::Usage(format!("{place} cannot be read: {e}"))),
        };
        let mut lines = text.lines();
        let known: Option<Head> = lines.next().and_then(|line| serde_json::from_str(line).ok());
        if known.as_ref() != Some(head) {
            return Err(ServiceError::Usage(format!("{place} is of other servers than these; leave --resume out to begin anew")));
        }
        // The last line may have been cut short.
        let reports = lines.filter_map(|line| serde_json::from_str::<TableReport>(line).ok());
        Ok(reports.filter(|report| report.state == TableState::Equal).collect())
    }

    /// Progress that cannot be kept is no reason to stop.
    fn add(&mut self, report: &TableReport) {
        let Some(file) = &mut self.file else { return };
        let line = serde_json::to_string(report).unwrap_or_default();
        if let Err(error) = writeln!(file, "{line}").and_then(|()| file.flush()) {
            tracing::warn!("{} cannot be written, so this verification cannot be resumed: {error}", self.path.display());
            self.file = None;
        }
    }

    fn end(&mut self) {
        self.file = None;
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Did it come to nothing because somebody could not be asked?
#[must_use]
pub fn could_not_run(report: &Report) -> bool {
    use crate::actions::replica_causes::Cause;
    let silent = matches!(report.replica.trouble(), Some((Cause::CannotAsk, _, _)));
    silent || report.notes.iter().any(|note| note.what == "no_primary") && report.replica.trouble().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_never_repeated() {
        let muster = Muster::new("/nowhere".into(), "none.yaml".into());
        let at = |url: &str| {
            muster.at_url(&SecretString::from(url.to_owned()), "MUSTER_NO_SUCH_URL").map(|(database, named)| (database, named.name))
        };
        assert_eq!(at("postgres://ana@db1:6000/led%20ger").unwrap(), ("led ger".to_owned(), "db1:6000/led ger".to_owned()));
        assert_eq!(at("postgresql://[::1]").unwrap().1, "::1:5432/postgres");
        for (url, why) in
            [("postgres://a:secret@h/d", "MUSTER_NO_SUCH_URL"), ("mysql://h/d", "not one of PostgreSQL"), ("h secret", "no URL")]
        {
            let said = at(url).unwrap_err().to_string();
            assert!(said.contains(why) && !said.contains("secret"), "{said}");
        }
        assert_eq!(percent("a%2Fb%zz"), None);
    }
}
