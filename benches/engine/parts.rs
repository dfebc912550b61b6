//! The parts of the bench of the engine, each with its own way of making the world that it measures.
// A bench measures real time and ends at the first surprise.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::{
    stores::{Commits, Store, commits},
    support::runtime,
};
use muster::engine::Engine;
use muster::journal::{ChainKind, Draft, Journal, NewChain, sqlite::SqliteJournal};
use muster::model::{effect::Failure, estate::Estate, event::Body, ids::*, plan::Plan};
use muster::providers::{clock::SystemClock, world::World};
use muster::service::Muster;
use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

const STEPS: u32 = 10;
/// How long one turn of the engine and one of the store take.
const TURN: Duration = Duration::from_secs(2);
const TURNS: usize = 5;
fn plan(steps: u32) -> Plan {
    Muster::new(".".into(), "muster.yaml".into()).noop_plan(steps).expect("a plan")
}

fn engine(journal: Arc<dyn Journal>, scratch: &Path) -> Engine {
    let clock = Arc::new(SystemClock::new());
    Engine {
        journal,
        world: Arc::new(World::new(Arc::new(Estate::default()), clock.clone())),
        clock,
        actor: format!("muster@bench:{}", std::process::id()),
        scratch: scratch.join("runs"),
        listener: Arc::new(|_| {}),
        interrupt: tokio::sync::watch::channel(false).1,
    }
}

/// Processor time of a process, in seconds; the kernel counts it in hundredths.
fn cpu(pid: u32) -> f64 {
    ticks(pid, 11)
}

/// That of the children that this process has waited for.
fn children_cpu() -> f64 {
    ticks(std::process::id(), 13)
}

/// Two fields of what the kernel says of a process, behind its name: time as itself, time in the kernel.
fn ticks(pid: u32, first: usize) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("its name").1.split_whitespace().collect();
    fields[first..first + 2].iter().map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / 100.0
}

fn rss_kib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("KiB")
}

fn at<T: Copy + PartialOrd>(values: &mut [T], share: usize) -> T {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).expect("an order"));
    values[(values.len() - 1) * share / 100]
}

fn ms(length: Duration) -> f64 {
    length.as_secs_f64() * 1e3
}

/// One lane of runs, one after the other.
async fn lane(engine: Engine, plan: Arc<Plan>, until: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        one(&engine, &plan).await;
        took.push(begun.elapsed());
    }
    took
}

async fn one(engine: &Engine, plan: &Arc<Plan>) -> RunId {
    let (claim, first) = engine.create(plan.clone(), None).await.expect("a run");
    let run = claim.run.clone();
    let outcome = engine.start(claim, first).await.expect("its end");
    assert!(outcome.state.status.is_final());
    run
}

/// Runs of ten steps, each durable before the next one begins, beside the store's own commits.
pub fn steps(store: &dyn Store, dir: &Path) {
    println!("\n{}: runs of {STEPS} steps; limit: their commits and records with nothing of Muster's, {}", store.name(), store.shares());
    for at_once in [1, 16, 128] {
        // It names a database as well.
        let place = dir.join(format!("{}_{at_once}", store.name().to_lowercase()));
        std::fs::create_dir_all(&place).expect("a directory");
        let runtime = runtime();
        let engine = engine(store.journal(&runtime, &place), &place);
        let plan = Arc::new(plan(STEPS));
        let run = runtime.block_on(one(&engine, &plan));
        let events = runtime.block_on(engine.journal.dump(Some(&[run]))).expect("what it left").events;
        steps_at_once(store, &runtime, &place, (&engine, &plan), &commits(events), at_once);
    }
}

/// The engine and the store in turns.
fn steps_at_once(store: &dyn Store, runtime: &Runtime, place: &Path, (engine, plan): (&Engine, &Arc<Plan>), run: &Commits, at_once: u32) {
    let (mut rates, mut limits, mut ratios, mut took, mut costs) = (vec![], vec![], vec![], vec![], vec![]);
    // As many rounds of commits as take about half a turn.
    let once = store.limit(runtime, place, run, at_once, 1);
    let times = (TURN.as_secs_f64() / 2.0 / once.as_secs_f64()).clamp(1.0, 100_000.0) as u32;
    for _ in 0..TURNS {
        let limit = f64::from(times * at_once) / store.limit(runtime, place, run, at_once, times).as_secs_f64();
        let (begun, used) = (Instant::now(), cpu(std::process::id()));
        let lanes: Vec<_> = (0..at_once).map(|_| runtime.spawn(lane(engine.clone(), plan.clone(), begun + TURN))).collect();
        let turn: Vec<_> = lanes.into_iter().flat_map(|lane| runtime.block_on(lane).expect("a lane")).collect();
        let rate = turn.len() as f64 / begun.elapsed().as_secs_f64();
        costs.push((cpu(std::process::id()) - used) * 1e3 / turn.len() as f64);
        rates.push(rate);
        limits.push(limit);
        ratios.push(limit / rate);
        took.extend(turn);
    }
    let (p50, p99) = (ms(at(&mut took, 50)), ms(at(&mut took, 99)));
    println!(
        "  {at_once:>4} at once: {:>8.0} runs/s, {:>8.0} steps/s  p50 {p50:>7.2} ms, p99 {p99:>7.2} ms a run; {:>6.3} ms p50, {:>6.3} ms p99 a step; {:.3} ms of this process's processor a run",
        at(&mut rates, 50),
        at(&mut rates, 50) * f64::from(STEPS),
        p50 / f64::from(STEPS),
        p99 / f64::from(STEPS),
        at(&mut costs, 50),
    );
    println!(
        "       the store: {:>8.0} runs/s, of {} commits and {} records each; its time to ours 1 : {:.2} (of {TURNS} turns: {:.2} to {:.2})",
        at(&mut limits, 50),
        run.len(),
        run.iter().map(Vec::len).sum::<usize>(),
        at(&mut ratios, 50),
        at(&mut ratios, 0),
        at(&mut ratios, 100)
    );
}

fn draft(body: Body) -> Draft {
    Draft { at: jiff::Timestamp::now(), actor: "muster@bench:1".to_owned(), body }
}

fn first(plan: &Plan) -> Draft {
    draft(Body::RunCreated { plan: plan.clone().into(), drill: None })
}

fn chain(id: String, kind: ChainKind) -> NewChain {
    NewChain { id: RunId(id), kind, name: "noop".to_owned(), parent: None, locks: Vec::new() }
}

/// A run whose first step was tried five thousand times, and which is now gone on with.
pub fn resume(dir: &Path) {
    const EVENTS: u64 = 10_000;
    // On a busy machine it gets some steps further before it is let go of: it must not come to its end.
    const MORE: u32 = 64;
    let runtime = runtime();
    runtime.block_on(async {
        let journal = SqliteJournal::open(dir).await.expect("a journal");
        let step = || StepId::from("step_1");
        let (claim, _) = journal.create(chain("long".to_owned(), ChainKind::Run), "bench", first(&plan(MORE))).await.expect("a run");
        let failure = Failure::new("condition", "the condition does not hold");
        let tried = |n: u64| {
            let refused = Body::Refused { step: step(), attempt: n as u32, failure: failure.clone(), retry: true };
            [draft(refused), draft(Body::RetryAt { step: step(), at: jiff::Timestamp::now() })]
        };
        let mut seq = 1;
        while seq < EVENTS {
            let drafts: Vec<_> = (0..100).flat_map(|n| tried(seq / 2 + n)).collect();
            seq = journal.append(&claim, seq, drafts).await.expect("appends").last().expect("an event").event.seq;
        }
    });
    let mut took: Vec<_> = (0..9).map(|_| runtime.block_on(go_on(dir))).collect();
    let (p50, most) = (ms(at(&mut took, 50)), ms(at(&mut took, 100)));
    println!("\nresume of a run with 10,000 events, journal opened anew: {p50:.1} ms to its next step, {most:.1} at most (of 9)");
}

/// From opening the journal until the intent of the next step is durable; then the process lets go.
async fn go_on(dir: &Path) -> Duration {
    let begun = Instant::now();
    let journal = Arc::new(SqliteJournal::open(dir).await.expect("a journal"));
    let (told, hears) = mpsc::channel();
    let mut engine = engine(journal, dir);
    engine.listener = Arc::new(move |stored| {
        if matches!(stored.event.body, Body::Applying { .. }) {
            // Later ones find nobody listening.
            let _ = told.send(Instant::now());
        }
    });
    let claim = engine.journal.claim(&"long".into(), "bench").await.expect("a claim");
    let run = tokio::spawn(async move { engine.carry_on(claim, true).await });
    let next = tokio::task::spawn_blocking(move || hears.recv().expect("a step")).await.expect("waits");
    run.abort();
    let _ = run.await;
    next - begun
}

/// A process of this program's own that does one thing, says so, and waits to be killed.
fn other(args: &[&str]) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .arg("child")
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("it speaks");
    assert_eq!(line.trim(), "ready");
    child
}

pub fn child(args: &[String]) {
    let [what, dir, number] = args else { panic!("child WHAT DIR NUMBER") };
    let (dir, number) = (Path::new(dir), number.parse::<u32>().expect("a number"));
    let runtime = runtime();
    let kept = match what.as_str() {
        "open" => runtime.block_on(open_runs(dir, number)),
        "idle" => runtime.block_on(idle_runs(dir, number)),
        other => panic!("no part {other}"),
    };
    println!("ready");
    std::thread::sleep(Duration::from_secs(600));
    drop(kept);
}

/// Runs whose first step was about to be applied when their process died.
async fn open_runs(dir: &Path, number: u32) -> Box<dyn std::any::Any> {
    let journal = Arc::new(SqliteJournal::open(dir).await.expect("a journal"));
    let plan = Arc::new(plan(STEPS));
    let mut claims = Vec::new();
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..64 {
        let (journal, plan) = (journal.clone(), plan.clone());
        lanes.spawn(async move {
            let mut claims = Vec::new();
            for n in (lane..number).step_by(64) {
                let id = format!("open-{n:08}");
                let (claim, _) = journal.create(chain(id, ChainKind::Run), "bench", first(&plan)).await.expect("a run");
                let step = || StepId::from("step_1");
                let intent = serde_json::json!({ "that": true, "otherwise": null });
                let prepared =
                    Body::Prepared { step: step(), intent, measured: None, hash: "00".repeat(32), change: Vec::new(), notes: Vec::new() };
                let applying = Body::Applying { step: step(), attempt: 1, epoch: 1, key: "00".repeat(32) };
                let drafts = vec![draft(Body::Claimed { owner: "bench".to_owned() }), draft(prepared), draft(applying)];
                journal.append(&claim, 1, drafts).await.expect("appends");
                claims.push(claim);
            }
            claims
        });
    }
    while let Some(lane) = lanes.join_next().await {
        claims.extend(lane.expect("a lane"));
    }
    Box::new((claims, journal))
}

fn serve(dir: &Path, state: &Path) -> Child {
    std::fs::write(dir.join("muster.yaml"), "regions: {}\n").expect("an estate");
    Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(["serve", "--state"])
        .arg(state)
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("serve.log")).expect("a log"))
        .spawn()
        .expect("it starts")
}

/// Kills the owner of so many open runs; `muster serve` goes on with them.
pub fn recovery(dir: &Path) {
    println!("\nkill -9 of the owner of open runs, then `muster serve`:");
    for number in [1_u32, 1_000, 10_000] {
        let (mut next, mut every, mut ends) = (vec![], vec![], vec![]);
        for round in 0..if number < 10_000 { 5 } else { 3 } {
            let place = dir.join(format!("{number}-{round}"));
            let state = place.join("state");
            std::fs::create_dir_all(&state).expect("a directory");
            let mut owner = other(&["open", state.to_str().expect("a path"), &number.to_string()]);
            let store = rusqlite::Connection::open(state.join("journal.db")).expect("the journal");
            let known: i64 = store.query_row("SELECT max(rowid) FROM events", [], |row| row.get(0)).expect("events");
            let begun = Instant::now();
            owner.kill().expect("it is killed");
            owner.wait().expect("it is gone");
            let mut serve = serve(&place, &state);
            until(&store, &format!("SELECT max(rowid) > {known} FROM events"));
            next.push(begun.elapsed());
            until(&store, "SELECT count(*) = 0 FROM chains WHERE seq = 4");
            every.push(begun.elapsed());
            until(&store, "SELECT count(*) = 0 FROM chains WHERE finished_at IS NULL");
            ends.push(begun.elapsed());
            serve.kill().expect("it is killed");
            serve.wait().expect("it is gone");
        }
        println!(
            "  {number:>6} open: {:>8.1} ms to the first next step, {:>9.1} ms until every run had one, {:>9.1} ms until all had ended (medians of {})",
            ms(at(&mut next, 50)),
            ms(at(&mut every, 50)),
            ms(at(&mut ends, 50)),
            next.len()
        );
    }
}

/// Asks until the answer is yes.
fn until(store: &rusqlite::Connection, question: &str) {
    let begun = Instant::now();
    while !store.query_row(question, [], |row| row.get::<_, bool>(0)).expect("an answer") {
        assert!(begun.elapsed() < Duration::from_secs(120), "it never is: {question}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs of ten steps whose first one is to be tried again in an hour.
async fn idle_runs(dir: &Path, number: u32) -> Box<dyn std::any::Any> {
    let mut plan = plan(STEPS);
    for step in &mut plan.steps {
        step.with = muster::model::node::Node::typed(serde_json::json!({ "that": false }));
        step.retry.attempts = 2;
        step.retry.backoff = muster::model::time::Span::from_secs(3_600);
        step.retry.max_backoff = step.retry.backoff;
    }
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let mut engine = engine(Arc::new(SqliteJournal::open(dir).await.expect("a journal")), dir);
    engine.listener = Arc::new(move |stored| {
        if matches!(stored.event.body, Body::RetryAt { .. }) {
            told.send(()).expect("somebody listens");
        }
    });
    let plan = Arc::new(plan);
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..number {
        let (engine, plan) = (engine.clone(), plan.clone());
        runs.spawn(async move {
            let (claim, first) = engine.create(plan, None).await.expect("a run");
            engine.start(claim, first).await
        });
    }
    for _ in 0..number {
        hears.recv().await.expect("a run");
    }
    // The runtime is left with nothing to do but what idle runs make it do.
    Box::new((runs, engine))
}

pub fn idle(dir: &Path) {
    const RUNS: u32 = 10_000;
    let mut sizes = Vec::new();
    let mut share = 0.0;
    for number in [100, 100 + RUNS] {
        let state = dir.join(format!("{number}"));
        std::fs::create_dir_all(&state).expect("a directory");
        let mut child = other(&["idle", state.to_str().expect("a path"), &number.to_string()]);
        std::thread::sleep(Duration::from_secs(1));
        sizes.push(rss_kib(child.id()));
        let (begun, used) = (Instant::now(), cpu(child.id()));
        std::thread::sleep(Duration::from_secs(10));
        share = (cpu(child.id()) - used) / begun.elapsed().as_secs_f64() * 100.0;
        child.kill().expect("it is killed");
        child.wait().expect("it is gone");
    }
    println!(
        "\nidle open runs of {STEPS} steps, in one process: {:.1} KiB each ({:.0} MiB for {}); {share:.1} % of a core for all",
        (sizes[1] - sizes[0]) / f64::from(RUNS),
        sizes[1] / 1024.0,
        RUNS + 100
    );
}

/// What `muster serve` takes of a core while nothing is due.
pub fn schedules(dir: &Path) {
    const LENGTH: Duration = Duration::from_secs(25);
    println!("\n`muster serve` with schedules of which none is due, over {} s:", LENGTH.as_secs());
    for number in [1_u32, 10_000] {
        let place = dir.join(number.to_string());
        for folder in ["drills", "runbooks"] {
            std::fs::create_dir_all(place.join(folder)).expect("a directory");
        }
        let book = "runbook: nothing\nsteps:\n  - id: look\n    uses: condition.check\n    with: { that: true }\n";
        std::fs::write(place.join("runbooks/nothing.yaml"), book).expect("a runbook");
        for n in 0..number {
            let (minute, hour) = (n % 60, n / 60 % 24);
            // In another month than this one: nothing is due while it is measured.
            let month = (jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).month() + 5) % 12 + 1;
            let drill = format!(
                "drill: d{n}\nkind: switchover\nrunbook: nothing\nschedule: {{ cron: \"{minute} {hour} 3 {month} *\", timezone: UTC }}\n"
            );
            std::fs::write(place.join(format!("drills/d{n:05}.yaml")), drill).expect("a drill");
        }
        let mut serve = serve(&place, &place.join("state"));
        let store = place.join("state/journal.db");
        let begun = Instant::now();
        while !store.is_file() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let store = rusqlite::Connection::open(store).expect("the journal");
        store.busy_timeout(Duration::from_secs(10)).expect("patience");
        let known = |row: &rusqlite::Row<'_>| row.get::<_, u32>(0);
        // Every schedule is in the journal once the calendar was looked at.
        while store.query_row("SELECT count(*) FROM schedules", [], known).unwrap_or(0) < number {
            assert!(begun.elapsed() < Duration::from_secs(300), "{}", std::fs::read_to_string(place.join("serve.log")).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(100));
        }
        let ready = begun.elapsed();
        std::thread::sleep(Duration::from_secs(2));
        let (begun, used) = (Instant::now(), cpu(serve.id()));
        std::thread::sleep(LENGTH);
        let share = (cpu(serve.id()) - used) / begun.elapsed().as_secs_f64() * 100.0;
        println!(
            "  {number:>6}: {share:>5.2} % of a core, {:.0} MiB; all on record after {:.1} s",
            rss_kib(serve.id()) / 1024.0,
            ready.as_secs_f64()
        );
        serve.kill().expect("it is killed");
        serve.wait().expect("it is gone");
    }
}

/// `muster runs`, from its start to its end, over a journal with a million runs.
pub fn list(dir: &Path) {
    const RUNS: i64 = 1_000_000;
    const TIMES: u32 = 200;
    let state = dir.join("state");
    let runtime = runtime();
    runtime.block_on(async {
        let journal = SqliteJournal::open(&state).await.expect("a journal");
        journal.create(chain("real".to_owned(), ChainKind::Run), "bench", first(&plan(1))).await.expect("a run");
    });
    let mut store = rusqlite::Connection::open(state.join("journal.db")).expect("the journal");
    let tx = store.transaction().expect("begins");
    {
        let mut chains = tx
            .prepare("INSERT INTO chains (id, kind, name, status, started_at, finished_at, epoch, owner, seq, head) VALUES (?1, 'run', 'noop', 'succeeded', ?2, ?2, 1, 'bench', 1, ?3)")
            .expect("prepares");
        let mut events =
            tx.prepare("INSERT INTO events (chain, seq, kind, hash, record) VALUES (?1, 1, 'run_created', ?2, ?3)").expect("prepares");
        let (head, record) = ("00".repeat(32), vec![b'x'; 200]);
        for n in 0..RUNS {
            let at = jiff::Timestamp::from_second(1_700_000_000 + n).expect("an instant").to_string();
            let id = chains.insert(rusqlite::params![format!("run-{n:032}"), at, head]).expect("inserts");
            events.execute(rusqlite::params![id, [0_u8; 32], record]).expect("inserts");
        }
    }
    tx.commit().expect("commits");
    store.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("checkpoints");
    drop(store);
    let bytes = std::fs::metadata(state.join("journal.db")).expect("the journal").len();
    let timed = |args: &[&str]| {
        let begun = Instant::now();
        let done = Command::new(env!("CARGO_BIN_EXE_muster")).args(args).arg("--state").arg(&state).output().expect("it runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        begun.elapsed()
    };
    let mut bare: Vec<_> = (0..TIMES).map(|_| timed(&["schema", "drill"])).collect();
    let used = children_cpu();
    let mut took: Vec<_> = (0..TIMES).map(|_| timed(&["runs"])).collect();
    let used = (children_cpu() - used) * 1e3 / f64::from(TIMES);
    println!(
        "\n`muster runs` over {RUNS} runs ({} MiB), process start included: p50 {:.1} ms, p99 {:.1} ms, {used:.1} ms of processor (a command without a journal: p50 {:.1} ms, p99 {:.1} ms)",
        bytes >> 20,
        ms(at(&mut took, 50)),
        ms(at(&mut took, 99)),
        ms(at(&mut bare, 50)),
        ms(at(&mut bare, 99))
    );
}
