//! Several nodes on one journal: real `muster serve` processes, each with a state directory of its own, on a
//! real PostgreSQL; they are killed, frozen, cut off, and so is the database under them. What is looked at
//! lies outside: each step appends its run, its name and its process to a file.

use crate::pg;
use crate::place::{Place, Running, Said};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The lease of the nodes, and what a busy machine may take on top of it and of the second that is promised.
const LEASE: &str = "3s";
const LEASE_MS: i64 = 3_000;
const SLACK_MS: i64 = 8_000;

struct Site {
    place: Place,
    server: pg::Cluster,
    url: String,
    home: pg::Home,
}

impl Site {
    fn new() -> Self {
        let home = pg::Home::new();
        let server = pg::Cluster::durable(&home);
        let url = server.database("journal");
        Self { place: Place::new(), server, url, home }
    }

    fn command(&self, url: &str, state: &str, args: &[&str]) -> std::process::Command {
        let state = self.place.path(state);
        let global = ["--journal", url, "--lease", LEASE, "--state", state.to_str().unwrap()];
        let mut command = self.place.command(&[&global, args].concat());
        command.env_remove("MUSTER_JOURNAL");
        command
    }
    fn node(&self, n: usize) -> Running {
        self.node_at(n, &self.url)
    }
    fn node_at(&self, n: usize, url: &str) -> Running {
        self.place.spawn(self.command(url, &format!("node{n}"), &["serve"]))
    }
    fn start(&self, args: &[&str]) -> Running {
        self.place.spawn(self.command(&self.url, "cli", args))
    }
    fn muster(&self, args: &[&str]) -> Said {
        self.start(&[args, &["--json"]].concat()).end()
    }

    /// A runbook whose steps append to `effects`, and can say whether they did.
    fn book(&self, steps: usize) {
        self.place.book(&steps_of(steps, "0.3"));
    }
    /// A run whose owner is killed as soon as it has acted.
    fn left(&self) -> String {
        let before = self.effects().len();
        let running = self.start(&["run", "book.yaml"]);
        self.place.until("a first effect", || self.effects().len() > before);
        running.signal("KILL");
        running.end();
        self.effects().last().unwrap().0.clone()
    }
    /// Run, step, process.
    fn effects(&self) -> Vec<(String, String, String)> {
        let text = self.place.read("effects");
        let word = |line: &str, n| line.split(' ').nth(n).unwrap_or_default().to_owned();
        text.lines().map(|line| (word(line, 0), word(line, 1), word(line, 2))).collect()
    }

    /// One value of the journal's database, asked of the server that takes writes.
    fn ask(&self, statement: &str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let asked = async {
                let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&self.url).await?;
                let query = sqlx::query_scalar::<_, Option<String>>(sqlx::AssertSqlSafe(statement.to_owned()));
                query.fetch_optional(&mut conn).await
            };
            // A server that is down says nothing.
            tokio::time::timeout(Duration::from_secs(5), asked).await.ok().and_then(Result::ok).flatten().flatten().unwrap_or_default()
        })
    }
    /// The process that owns a run now.
    fn owner(&self, run: &str) -> Option<u32> {
        let owner = self.ask(&format!(
            "SELECT owner FROM chains WHERE id = '{run}' AND session IN (SELECT session FROM nodes WHERE expires_at > clock_timestamp())"
        ));
        owner.rsplit_once(':').and_then(|(_, pid)| pid.parse().ok())
    }
    /// The one of these that owns it: not the process that was killed, and keeps it until its lease is over.
    fn owned_by(&self, run: &str, nodes: &[&Running]) -> Option<u32> {
        self.owner(run).filter(|pid| nodes.iter().any(|node| node.pid() == *pid))
    }
    fn is_finished(&self, run: &str) -> bool {
        !self.ask(&format!("SELECT finished_at FROM chains WHERE id = '{run}'")).is_empty()
    }
    fn events(&self, run: &str) -> Vec<Value> {
        self.muster(&["show", run]).expect(0).last()["events"].as_array().unwrap().clone()
    }

    /// Waits for the end of these runs, and holds that every effect happened once, in its owner's time, and
    /// that the record is whole.
    fn all_good(&self, runs: &[String], steps: usize, nodes: &[&Running]) {
        for run in runs {
            self.place.until_told(&format!("the end of {run}"), || self.is_finished(run), || self.told(run, nodes));
        }
        let effects = self.effects();
        let unique: BTreeSet<_> = effects.iter().map(|(run, step, _)| (run, step)).collect();
        assert_eq!(unique.len(), effects.len(), "an effect was repeated: {effects:?}");
        for run in runs {
            let events = self.events(run);
            assert_eq!(events.last().unwrap()["body"]["status"], "succeeded", "{}", self.told(run, nodes));
            let own: Vec<_> = effects.iter().filter(|(of, ..)| of == run).collect();
            assert_eq!(own.len(), steps, "an effect is missing: {own:?}");
            let mut epoch = 0;
            for (_, step, pid) in own {
                // Begun by whoever owned the run then, on record before it.
                let applying = |event: &&Value| {
                    event["body"]["kind"] == "applying"
                        && event["body"]["step"] == step.as_str()
                        && event["actor"].as_str().unwrap().ends_with(&format!(":{pid}"))
                };
                let begun = events.iter().find(applying).unwrap_or_else(|| panic!("{pid} did {step} without a record: {events:?}"));
                let its = begun["epoch"].as_u64().unwrap();
                assert!(its >= epoch, "{step} was done by an owner that had been deposed");
                epoch = its;
            }
        }
        self.muster(&["evidence", "verify"]).expect(0);
    }

    fn told(&self, run: &str, nodes: &[&Running]) -> String {
        let logs: Vec<_> = nodes.iter().map(|node| format!("--- {}\n{}", node.pid(), node.told())).collect();
        format!("{}\n{}", self.muster(&["show", run]).out, logs.join("\n"))
    }

    /// How long after an instant somebody else took the run over.
    fn taken_over(&self, run: &str, since: jiff::Timestamp) -> i64 {
        let at = |event: &Value| event["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let claimed = || {
            let events = self.events(run);
            events.iter().filter(|event| event["body"]["kind"] == "claimed").map(at).find(|at| *at > since)
        };
        // Who owns it has the row first, and then its record.
        self.place.until("somebody's claim is on record", || claimed().is_some());
        i64::try_from(claimed().unwrap().duration_since(since).as_millis()).unwrap()
    }
    /// Who took the run over first.
    fn first_heir(&self, run: &str) -> String {
        let claimed = "SELECT actor FROM events WHERE kind = 'claimed' AND epoch > 1 AND run =";
        self.ask(&format!("{claimed} '{run}' ORDER BY seq LIMIT 1"))
    }
    fn in_time(&self, run: &str, since: jiff::Timestamp) {
        let took = self.taken_over(run, since);
        println!("taken over after {took} ms, with a lease of {LEASE_MS} ms");
        assert!(took <= LEASE_MS + 1_000 + SLACK_MS, "{took} ms");
    }
}

fn steps_of(steps: usize, takes: &str) -> String {
    let step = |n: usize| {
        format!(
            "  - id: s{n}\n    uses: exec.command\n    with:\n      argv: [sh, -c, 'echo \"$MUSTER_RUN $MUSTER_STEP $PPID\" >> @/effects; sleep {takes}']\n      \
             observe: [sh, -c, 'grep -q \"^$MUSTER_RUN $MUSTER_STEP \" @/effects 2>/dev/null || exit 1']\n"
        )
    };
    (0..steps).map(step).collect()
}

/// A wire that can be cut: nothing is refused, nothing comes through, and what was under way arrives late.
struct Wire {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (own, cut) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let flag = cut.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", port))) else { continue };
                for (from, to) in [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))] {
                    let (from, to, flag) = (from.unwrap(), to.unwrap(), flag.clone());
                    std::thread::spawn(move || carry(from, to, &flag));
                }
            }
        });
        Self { port: own, cut }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut buffer = [0; 16 * 1024];
    loop {
        while cut.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        // Cut while it was read: it is late.
        while cut.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

fn at(nodes: &[Running], pid: u32) -> &Running {
    nodes.iter().find(|node| node.pid() == pid).unwrap()
}

#[test]
fn nodes_share_what_was_left_and_go_on_with_what_a_killed_one_did() {
    let site = Site::new();
    site.book(20);
    let mut nodes: Vec<_> = (0..3).map(|n| site.node(n)).collect();
    site.place.until("three nodes", || site.ask("SELECT count(*)::text FROM nodes WHERE serves") == "3");
    let killed = jiff::Timestamp::now();
    let runs: Vec<_> = (0..6).map(|_| site.left()).collect();
    let all: Vec<_> = nodes.iter().collect();
    // The owner of the last one dies as soon as it has acted, and with it whatever else it had: on a busy machine the
    // first ones may have ended by then.
    let victim = runs.last().unwrap();
    let mut owner = 0;
    site.place.until_told(
        "an owner",
        || {
            site.owned_by(victim, &all).map(|pid| owner = pid).is_some()
                && site.effects().iter().filter(|(of, ..)| of == victim).count() > 1
        },
        || site.told(victim, &all),
    );
    let killed_again = jiff::Timestamp::now();
    let gone = nodes.iter().position(|node| node.pid() == owner).unwrap();
    let gone = nodes.remove(gone);
    gone.signal("KILL");
    gone.end();
    let named = |run: &Value| run["owner"].as_str().is_some_and(|owner| owner.starts_with("muster@"));
    site.place.until("a list names an owner", || site.muster(&["runs"]).expect(0).last()["runs"].as_array().unwrap().iter().any(named));
    let left: Vec<_> = nodes.iter().collect();
    site.all_good(&runs, 20, &left);
    site.in_time(victim, killed_again);
    assert!(site.taken_over(&runs[0], killed) > 0);
    let owners: BTreeSet<_> = runs.iter().map(|run| site.first_heir(run)).collect();
    println!("{} runs on {} nodes", runs.len(), owners.len());
}

#[test]
fn nodes_depose_a_frozen_one_and_its_late_append_is_refused() {
    let site = Site::new();
    site.book(20);
    let nodes: Vec<_> = (0..3).map(|n| site.node(n)).collect();
    let run = site.left();
    let all: Vec<_> = nodes.iter().collect();
    let mut owner = 0;
    site.place.until_told("an owner", || site.owned_by(&run, &all).map(|pid| owner = pid).is_some(), || site.told(&run, &all));
    let frozen = at(&nodes, owner);
    let before = site.effects().len();
    site.place.until("it acts", || site.effects().len() > before);
    frozen.signal("STOP");
    let since = jiff::Timestamp::now();
    site.place.until_told("another owner", || site.owner(&run).is_some_and(|pid| pid != owner), || site.told(&run, &all));
    site.in_time(&run, since);
    frozen.signal("CONT");
    site.all_good(std::slice::from_ref(&run), 20, &all);
    let told = frozen.told();
    assert!(told.contains("ran out") || told.contains("no longer owns") || told.contains("could not be renewed in time"), "{told}");
    // It takes part again, under a new session.
    site.place
        .until("a new session", || site.ask("SELECT count(*)::text FROM nodes WHERE serves AND expires_at > clock_timestamp()") == "3");
}

#[test]
fn nodes_go_on_without_one_that_is_cut_off_from_the_journal() {
    let site = Site::new();
    site.book(20);
    let wire = Wire::to(site.server.port);
    let alone = site.node_at(0, &format!("postgres://postgres@127.0.0.1:{}/journal", wire.port));
    let run = site.left();
    site.place.until_told("it owns the run", || site.owner(&run) == Some(alone.pid()), || site.told(&run, &[&alone]));
    let others = [site.node(1), site.node(2)];
    let before = site.effects().len();
    site.place.until("it acts", || site.effects().len() > before);
    let since = jiff::Timestamp::now();
    wire.cut.store(true, Ordering::SeqCst);
    let all = [&alone, &others[0], &others[1]];
    site.place.until_told("another owner", || site.owner(&run).is_some_and(|pid| pid != alone.pid()), || site.told(&run, &all));
    site.in_time(&run, since);
    // The wire is mended: what was sent before arrives now, too late.
    wire.cut.store(false, Ordering::SeqCst);
    site.all_good(std::slice::from_ref(&run), 20, &all);
    assert!(alone.told().contains("lease could not be renewed"), "{}", alone.told());
    site.place
        .until("a new session", || site.ask("SELECT count(*)::text FROM nodes WHERE serves AND expires_at > clock_timestamp()") == "3");
}

#[test]
fn nodes_outlast_a_restart_of_the_database() {
    let site = Site::new();
    site.book(12);
    let nodes: Vec<_> = (0..3).map(|n| site.node(n)).collect();
    let runs = [site.left(), site.left()];
    let all: Vec<_> = nodes.iter().collect();
    for run in &runs {
        site.place.until_told("an owner", || site.owned_by(run, &all).is_some(), || site.told(run, &all));
    }
    for _ in 0..2 {
        let before = site.effects().len();
        site.place.until("they act", || site.effects().len() > before || runs.iter().all(|run| site.is_finished(run)));
        site.server.stop();
        site.server.start_again();
    }
    site.all_good(&runs, 12, &all);
    assert!(nodes.iter().any(|node| node.told().contains("the journal")), "nobody noticed");
}

#[test]
fn nodes_follow_the_database_to_its_standby() {
    let mut site = Site::new();
    let standby = site.server.standby(&site.home);
    site.server.await_standby();
    site.url = format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/journal", site.server.port, standby.port);
    let both = site.url.clone();
    let nodes: Vec<_> = (0..3).map(|n| site.node_at(n, &both)).collect();
    site.book(14);
    // Asked of one server at a time by the test itself.
    site.url = site.server.url("journal");
    let runs = [site.left(), site.left()];
    let all: Vec<_> = nodes.iter().collect();
    for run in &runs {
        site.place.until_told("an owner", || site.owned_by(run, &all).is_some(), || site.told(run, &all));
    }
    let before = site.effects().len();
    site.place.until("they act", || site.effects().len() > before);
    site.server.signal("KILL");
    let since = jiff::Timestamp::now();
    standby.promote();
    site.url = standby.url("journal");
    site.all_good(&runs, 14, &all);
    println!("the first event after the failover: {} ms", first_after(&site, &runs, since));
}

fn first_after(site: &Site, runs: &[String], since: jiff::Timestamp) -> i64 {
    let at = |event: &Value| event["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let events = runs.iter().flat_map(|run| site.events(run)).map(|event| at(&event)).filter(|at| *at > since);
    i64::try_from(events.min().unwrap().duration_since(since).as_millis()).unwrap()
}

#[test]
fn nodes_fire_each_drill_once() {
    let site = Site::new();
    std::fs::create_dir_all(site.place.path("drills")).unwrap();
    std::fs::create_dir_all(site.place.path("runbooks")).unwrap();
    site.place.file("runbooks/quick.yaml", &format!("runbook: quick\nsteps:\n{}", steps_of(2, "0.1")));
    // Due five minutes ago and every day before: the latest is made up for, the others were missed.
    let due = jiff::Timestamp::now() - Duration::from_mins(5);
    let names: Vec<_> = (0..6).map(|n| format!("d{n}")).collect();
    for name in &names {
        let cron = due.strftime("%M %H * * *");
        let drill = format!("drill: {name}\nkind: failover\nrunbook: quick\nschedule: {{ cron: \"{cron}\", missed: run-once }}\n");
        site.place.file(&format!("drills/{name}.yaml"), &drill);
    }
    // The tables, and a calendar that was last looked at three days ago.
    let first = site.node(9);
    site.place.until("the tables", || site.ask("SELECT count(*)::text FROM schedules WHERE drill LIKE 'd%'") == "6");
    first.signal("TERM");
    first.end().expect(0);
    let back = (due - Duration::from_hours(72)).to_string();
    site.ask(&format!("UPDATE schedules SET considered = '{back}' RETURNING drill"));
    let nodes: Vec<_> = (0..3).map(|n| site.node(n)).collect();
    let done = "SELECT count(*)::text FROM chains WHERE kind = 'drill' AND status = 'pass'";
    let logs = || nodes.iter().map(Running::told).collect::<Vec<_>>().join("\n---\n");
    site.place.until_told("each drill has passed", || site.ask(done) == "6", logs);
    std::thread::sleep(Duration::from_secs(1));
    let kinds = |status: &str| site.ask(&format!("SELECT count(*)::text FROM chains WHERE kind = 'drill' AND status = '{status}'"));
    assert_eq!((kinds("pass"), kinds("missed"), kinds("running")), ("6".into(), "18".into(), "0".into()), "{}", logs());
    let effects = site.effects();
    let unique: BTreeSet<_> = effects.iter().map(|(run, step, _)| (run, step)).collect();
    assert_eq!((effects.len(), unique.len()), (12, 12), "{effects:?}");
    for word in ["error", "could not", "cannot", "tried again", "exists already"] {
        assert!(!logs().contains(word), "{word}: {}", logs());
    }
    assert_eq!(logs().matches("has begun").count(), 6);
    site.muster(&["evidence", "verify"]).expect(0);
}

#[test]
fn nodes_hand_over_what_they_have_when_they_are_told_to_stop() {
    let site = Site::new();
    site.book(12);
    let mut nodes: Vec<_> = (0..2).map(|n| site.node(n)).collect();
    let run = site.left();
    let mut owner = 0;
    let all: Vec<_> = nodes.iter().collect();
    site.place.until_told("an owner", || site.owned_by(&run, &all).map(|pid| owner = pid).is_some(), || site.told(&run, &all));
    let before = site.effects().len();
    site.place.until("it acts", || site.effects().len() > before);
    let stopped = nodes.remove(nodes.iter().position(|node| node.pid() == owner).unwrap());
    stopped.signal("TERM");
    let said = stopped.end().expect(0);
    assert!(said.err.contains("left to the other nodes"), "{}", said.err);
    site.all_good(std::slice::from_ref(&run), 12, &[&nodes[0]]);
    // The other one stops as well: nothing is owned by anybody, and nobody is in the list.
    let last = nodes.remove(0);
    last.signal("TERM");
    last.end().expect(0);
    site.place.until("all have left", || site.ask("SELECT count(*)::text FROM nodes WHERE serves") == "0");
}

#[test]
fn nodes_leave_alone_what_waits_for_a_person() {
    let site = Site::new();
    let ask = "  - id: sure\n    uses: approval\n    with: { approvers: 1, expires: 10m }\n";
    site.place.book(&format!("{ask}{}", steps_of(2, "0.1")));
    let node = site.node(0);
    let said = site.muster(&["run", "book.yaml"]).expect(3);
    let run = said.run();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!((site.effects().len(), site.owner(&run)), (0, None), "{}", node.told());
    site.muster(&["approve", &run, "sure", "--by", "ana"]).expect(0);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(site.effects().len(), 0, "an approval alone resumes nothing");
    site.muster(&["resume", &run]).expect(0);
    site.all_good(std::slice::from_ref(&run), 2, &[&node]);
}

#[test]
fn nodes_do_nothing_more_when_the_journal_is_gone_and_say_how_to_go_on() {
    let site = Site::new();
    site.book(8);
    for frozen in [true, false] {
        let before = site.effects().len();
        let running = site.start(&["run", "book.yaml"]);
        site.place.until("it acts", || site.effects().len() > before + 1);
        if frozen {
            site.server.signal("STOP");
        } else {
            site.server.stop();
        }
        let done = site.effects().len();
        let said = running.end().expect(3);
        let run = site.effects().last().unwrap().0.clone();
        assert!(site.effects().len() <= done + 1, "something was begun that could not be put on record");
        let on = format!("--journal {} resume {run}", site.url);
        assert!(said.err.contains(&on) && said.err.contains("Nothing was begun that is not on record"), "{}", said.err);
        if frozen {
            site.server.signal("CONT");
        } else {
            site.server.start_again();
        }
        site.muster(&["resume", &run]).expect(0);
        site.all_good(&[run], 8, &[]);
    }
}

#[test]
fn nodes_leave_alone_what_they_do_not_understand() {
    use muster::{
        journal::{ChainKind, Draft, Journal, NewChain, chain::sha256_hex, lease::Terms, postgres::*},
        model::event::Body,
    };
    let site = Site::new();
    site.place.book(&format!("  - id: sure\n    uses: approval\n    with: {{ approvers: 1, expires: 10m }}\n{}", steps_of(1, "0")));
    let waiting = site.muster(&["run", "book.yaml"]).expect(3).run();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let clock = Arc::new(muster::providers::clock::SystemClock::new());
        let part = Part { terms: Terms::default(), serves: true };
        let journal = PostgresJournal::open(&secrecy::SecretString::from(site.url.as_str()), part, clock, false).await.unwrap();
        let first = journal.load(&waiting.as_str().into(), 0).await.unwrap().remove(0);
        let text = serde_json::to_string(&first.event.body).unwrap();
        for (id, action) in [("future-action", "teleport"), ("future-form", "exec.command")] {
            let body: Body = serde_json::from_str(&text.replace("\"exec.command\"", &format!("\"{action}\""))).unwrap();
            let draft = |body| Draft { at: jiff::Timestamp::now(), actor: "a newer one".to_owned(), body };
            let chain = NewChain { id: id.into(), kind: ChainKind::Run, name: "book".to_owned(), parent: None, locks: Vec::new() };
            let (claim, _) = journal.create(chain, "a newer one", draft(body)).await.unwrap();
            journal.append(&claim, 1, vec![draft(Body::Resumed)]).await.unwrap();
            journal.release(claim).await;
        }
        journal.leave().await.unwrap();
        // As a newer one would have written it, hash and all.
        let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&site.url).await.unwrap();
        let record: Vec<u8> =
            sqlx::query_scalar("SELECT record FROM events WHERE run = 'future-form' AND seq = 2").fetch_one(&mut conn).await.unwrap();
        let record = String::from_utf8(record).unwrap().replace("\"resumed\"", "\"teleported\"");
        for statement in ["DROP TRIGGER events_keep ON events", "UPDATE chains SET status = 'running' WHERE id = 'future-form'"] {
            sqlx::query(statement).execute(&mut conn).await.unwrap();
        }
        sqlx::query("UPDATE events SET record = $1, hash = $2, kind = 'teleported' WHERE run = 'future-form' AND seq = 2")
            .bind(record.as_bytes())
            .bind(sha256_hex(record.as_bytes()))
            .execute(&mut conn)
            .await
            .unwrap();
    });
    site.place.book(&steps_of(3, "0.1"));
    let node = site.node(0);
    let run = site.left();
    site.place.until_told("the others go on", || site.is_finished(&run), || site.told(&run, &[&node]));
    site.place.until_told("what is not understood is told", || node.told().contains("of a form"), || node.told());
    let told = node.told();
    assert!(told.contains("`teleport`, which this version of muster does not have"), "{told}");
    assert!(told.contains("event 2 of future-form is of a form that this Muster does not know"), "{told}");
    assert_eq!((told.matches("`teleport`").count(), told.matches("future-form is of a form").count()), (1, 1), "told once: {told}");
    assert_eq!(site.ask("SELECT sum(epoch)::text FROM chains WHERE id LIKE 'future%'"), "2", "it was claimed");
    site.muster(&["resume", "future-action"]).expect(2);
}

/// What the real program does over the embedded journal, it does over a shared one as well: the same tests,
/// each with a database of its own.
#[test]
fn nodes_pass_the_tests_of_the_engine() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = format!("postgres://postgres@127.0.0.1:{}", server.port);
    let tests = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["engine::", "--test-threads", "3"])
        .env(crate::place::SERVER, url)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&tests.stdout);
    assert!(tests.status.success(), "{told}\n{}", String::from_utf8_lossy(&tests.stderr));
    let passed = told.split_whitespace().skip_while(|word| *word != "ok.").nth(1).and_then(|n| n.parse::<u32>().ok());
    println!("{} tests over PostgreSQL", passed.unwrap_or_default());
    assert!(passed.is_some_and(|passed| passed >= 20), "{told}");
}

#[test]
fn nodes_give_up_a_run_that_ends_whoever_owns_it() {
    let site = Site::new();
    site.place.book("  - id: poison\n    uses: exec.command\n    with: { argv: [sh, -c, 'echo x >> @/doses; kill -9 $PPID; sleep 5'], observe: ['false'] }\n");
    site.start(&["run", "book.yaml"]).end();
    let run = site.ask("SELECT id FROM chains");
    let mut node = site.node(0);
    site.place.until_told(
        "it is paused",
        || {
            if node.ended().is_some() {
                node = site.node(0);
            }
            site.ask("SELECT status FROM chains") == "paused"
        },
        || site.told(&run, &[]),
    );
    assert_eq!(site.place.words("doses").len(), 5);
    let show = site.muster(&["show", &run]).expect(0);
    assert!(show.out.contains("5 processes in a row ended while they owned it"), "{}", show.out);
    std::thread::sleep(Duration::from_secs(1));
    assert!(node.ended().is_none(), "it was claimed again");
}
