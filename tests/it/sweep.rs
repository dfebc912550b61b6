//! The kill sweep: a run of thirty steps whose effects are counted outside, ended by SIGKILL at every write to its
//! journal and at seeded random instants, and gone on with until its end. Nothing may be lost, nothing done twice.
//!
//! A slice runs with the other tests; `make sweep` kills everywhere and prints a table. Whoever is asked what
//! happened answers as a person would who looks at the files.

use crate::place::{Place, Said};
use serde_json::Value;
use std::{
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// So many steps in each layer; all of one layer need all of the one before it.
const LAYERS: [usize; 9] = [1, 4, 1, 8, 1, 6, 1, 6, 1];
const STEPS: usize = 29;

/// What step `n` is. The last, `end`, fails if it is told to, and then everything is undone.
struct Kind {
    observed: bool,
    undone: bool,
    flaky: bool,
    slow: bool,
}

fn kind(n: usize) -> Kind {
    Kind { observed: n.is_multiple_of(2), undone: !n.is_multiple_of(3), flaky: n.is_multiple_of(5), slow: n.is_multiple_of(4) }
}

fn name(n: usize) -> String {
    format!("s{n:02}")
}

fn book() -> String {
    let mut text = "runbook: book\ninputs:\n  end: { type: string }\nsteps:\n".to_owned();
    let (mut n, mut before) = (0, String::new());
    for layer in LAYERS {
        let names: Vec<_> = (n + 1..=n + layer).map(name).collect();
        for id in &names {
            n += 1;
            let Kind { observed, undone, flaky, slow } = kind(n);
            let first = if flaky { format!("test -e @/t/{id} || {{ : > @/t/{id}; exit 1; }}; ") } else { String::new() };
            let wait = if slow { "sleep 0.03; " } else { "" };
            let retry = if flaky { "    retry: { attempts: 3, backoff: 10ms }\n" } else { "" };
            write!(text, "  - id: {id}\n    needs: [{before}]\n    uses: exec.command\n{retry}    with:\n").unwrap();
            writeln!(text, "      argv: [sh, -c, '{first}{wait}echo {id} >> @/e/{id}']").unwrap();
            if observed {
                writeln!(text, "      observe: [sh, -c, 'test -s @/e/{id} && ! test -s @/u/{id}']").unwrap();
            }
            // Without `observe` an undo must bear being repeated: that is its contract.
            let once = if observed { String::new() } else { format!("mkdir @/t/undo-{id} 2>&- || exit 0; ") };
            if undone {
                writeln!(text, "      undo: [sh, -c, '{once}echo {id} >> @/u/{id}; echo {id} >> @/order']").unwrap();
            }
        }
        before = names.join(", ");
    }
    write!(text, "  - id: end\n    needs: [{before}]\n    uses: exec.command\n    on_failure: undo\n").unwrap();
    text + "    with: { argv: [sh, -c, 'test \"$0\" = ok && echo end >> @/e/end', '{{ inputs.end }}'], observe: [test, -s, '@/e/end'] }\n"
}

/// On memory where there is such a file system: what SIGKILL leaves does not depend on the disk.
fn place() -> Place {
    let place = if std::path::Path::new("/dev/shm").is_dir() { Place::within("/dev/shm") } else { Place::new() };
    for folder in ["e", "t", "u"] {
        std::fs::create_dir(place.path(folder)).unwrap();
    }
    place.file("book.yaml", &book());
    place
}

/// How a process of one run is ended.
#[derive(Clone, Debug)]
enum End {
    AtWrite(u64, &'static str),
    After(Duration),
    ByItself,
}

/// What one run, or many, came to.
#[derive(Default)]
struct Tally {
    runs: u64,
    kills: u64,
    resumes: u64,
    asked: u64,
    expected: u64,
    counted: u64,
    doubled: u64,
    lost: u64,
    undo_expected: u64,
    undo_counted: u64,
    out_of_order: u64,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        for (ours, theirs) in [
            (&mut self.runs, other.runs),
            (&mut self.kills, other.kills),
            (&mut self.resumes, other.resumes),
            (&mut self.asked, other.asked),
            (&mut self.expected, other.expected),
            (&mut self.counted, other.counted),
            (&mut self.doubled, other.doubled),
            (&mut self.lost, other.lost),
            (&mut self.undo_expected, other.undo_expected),
            (&mut self.undo_counted, other.undo_counted),
            (&mut self.out_of_order, other.out_of_order),
        ] {
            *ours += theirs;
        }
        self.wrong.extend(other.wrong);
    }

    fn line(&self, mode: &str) -> String {
        let Self { runs, kills, resumes, asked, expected, counted, doubled, lost, undo_expected, undo_counted, out_of_order, wrong } = self;
        format!(
            "{mode:<28} {runs:>5} {kills:>6} {resumes:>8} {asked:>6} {:>13} {doubled:>8} {lost:>5} {:>11} {out_of_order:>6} {:>6}",
            format!("{counted}/{expected}"),
            format!("{undo_counted}/{undo_expected}"),
            wrong.len()
        )
    }

    #[track_caller]
    fn clean(&self) {
        assert!(self.wrong.is_empty(), "{} runs were not as they should be, such as:\n{}", self.wrong.len(), self.wrong[0]);
        assert_eq!((self.doubled, self.lost, self.out_of_order), (0, 0, 0));
        assert_eq!((self.counted, self.undo_counted), (self.expected, self.undo_expected));
    }
}

const HEAD: &str = "where it was killed           runs  kills  resumes  asked  effects done  doubled  lost  undos done  order  wrong";

/// One run, its processes ended as `ends` says, until it ends by itself.
fn life(end: &str, what: &str, mut ends: impl FnMut(u64) -> End) -> (Tally, bool) {
    let place = place();
    let mut tally = Tally { runs: 1, ..Tally::default() };
    let mut killed_first = false;
    let mut begun = false;
    let input = format!("end={end}");
    let said = loop {
        assert!(tally.kills + tally.resumes < 1_000, "{what}: it gets nowhere");
        let how = if tally.kills < 400 { ends(tally.kills) } else { End::ByItself };
        tally.resumes += u64::from(begun);
        let args: &[&str] = if begun { &["resume", "--json"] } else { &["run", "book.yaml", "-i", &input, "--json"] };
        let mut command = place.command(args);
        if let End::AtWrite(write, when) = &how {
            command.env("MUSTER_FAILPOINT", format!("write:{write}:{when}"));
        }
        let running = place.spawn(command);
        if let End::After(wait) = how {
            std::thread::sleep(wait);
            running.signal_if_there("KILL");
        }
        let said = running.end();
        if said.code.is_none() {
            tally.kills += 1;
            killed_first |= tally.kills == 1 && tally.resumes == 0;
            let runs = place.muster_or(&["runs"], 2);
            begun = runs.code == Some(0) && !runs.out.contains("\"runs\":[]");
            continue;
        }
        match said.code {
            Some(3) => settle(&place, &said, &mut tally),
            // Killed once the end was on record, before it could be told.
            Some(0) if said.out.contains("\"resumed\":[]") => break place.muster(&["show", &place.newest()]),
            Some(0 | 1) => break said,
            _ => {
                tally.wrong.push(format!("{what}: {}\n{}", said.out, said.err));
                return (tally, killed_first);
            }
        }
    };
    judge(&place, end, &said, what, &mut tally);
    (tally, killed_first)
}

/// Looks at the files, as a person would, and says what happened.
fn settle(place: &Place, said: &Said, tally: &mut Tally) {
    let last = said.last();
    let run = said.run();
    for step in last["steps"].as_array().unwrap().iter().filter(|step| step["status"] == "indeterminate") {
        let id = step["id"].as_str().unwrap();
        tally.asked += 1;
        let n: usize = id.strip_prefix('s').and_then(|n| n.parse().ok()).unwrap_or(0);
        if kind(n).observed || n == 0 {
            tally.wrong.push(format!("step {id} can be observed, and a person was asked: {step}"));
        }
        let outcome = if place.read(&format!("e/{id}")).is_empty() { "not-done" } else { "done" };
        place.muster(&["resolve", &run, id, "--as", outcome, "--reason", "looked at the file"]).expect(0);
    }
}

fn judge(place: &Place, end: &str, said: &Said, what: &str, tally: &mut Tally) {
    let mut wrong = |why: String| tally.wrong.push(format!("{what}: {why}\n{}\n{}", said.out, said.err));
    let last = said.last();
    let undone = end != "ok";
    let want = if undone { "failed" } else { "succeeded" };
    if last["status"] != want {
        wrong(format!("it ended {}", last["status"]));
    }
    let verified = place.muster(&["evidence", "verify"]);
    if verified.code != Some(0) {
        wrong(format!("the record does not verify: {}", verified.out));
    }
    for step in last["steps"].as_array().unwrap() {
        let (id, status) = (step["id"].as_str().unwrap(), step["status"].as_str().unwrap());
        let n: usize = id.strip_prefix('s').and_then(|n| n.parse().ok()).unwrap_or(0);
        let good = match (n, undone) {
            (0, true) => status == "failed",
            (_, true) if kind(n).undone => status == "undone",
            _ => status == "succeeded" || status == "succeeded_with_warning" && !kind(n).observed,
        };
        if !good {
            wrong(format!("step {id} is said to be {status}"));
        }
    }
    let shown = place.muster(&["show", &place.newest()]);
    let count = |file: String| place.words(&file).len() as u64;
    let effects = (1..=STEPS).map(|n| count(format!("e/{}", name(n)))).chain([count("e/end".to_owned())]);
    for (n, done) in effects.enumerate() {
        let expected = u64::from(n < STEPS || !undone);
        tally.expected += expected;
        tally.counted += done;
        tally.doubled += done.saturating_sub(expected);
        tally.lost += expected.saturating_sub(done);
    }
    for n in (1..=STEPS).filter(|_| undone) {
        let (expected, done) = (u64::from(kind(n).undone), count(format!("u/{}", name(n))));
        tally.undo_expected += expected;
        tally.undo_counted += done;
        tally.doubled += done.saturating_sub(expected);
        tally.lost += expected.saturating_sub(done);
    }
    if undone && place.words("order") != backwards(&shown.last()) {
        tally.out_of_order += 1;
    }
}

/// The steps that can be undone, the last begun first, as the journal has it.
fn backwards(shown: &Value) -> Vec<String> {
    let mut begun = Vec::new();
    for event in shown["events"].as_array().unwrap() {
        let body = &event["body"];
        let id = body["step"].as_str().unwrap_or_default().to_owned();
        let n: usize = id.strip_prefix('s').and_then(|n| n.parse().ok()).unwrap_or(0);
        if body["kind"] == "applying" && n > 0 && kind(n).undone && !begun.contains(&id) {
            begun.push(id);
        }
    }
    begun.reverse();
    begun
}

/// A small generator: the same instants for the same seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Each boundary is one life, killed there once. Every `stride`-th of them.
fn at_boundaries(end: &str, when: &'static str, stride: u64) -> Tally {
    let total = Mutex::new(Tally::default());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let write = 1 + stride * next.fetch_add(1, Ordering::SeqCst) as u64;
                    let what = format!("{end}, killed {when} write {write}");
                    let (tally, killed) = life(end, &what, |kills| if kills == 0 { End::AtWrite(write, when) } else { End::ByItself });
                    total.lock().unwrap().add(tally);
                    if !killed {
                        return;
                    }
                }
            });
        }
    });
    total.into_inner().unwrap()
}

/// One life, killed again and again: each process makes a few writes.
fn again_and_again(end: &str, from: u64) -> Tally {
    let what = format!("{end}, killed every few writes from {from}");
    life(end, &what, |kills| End::AtWrite(3 + (kills + from) % 7, if kills.is_multiple_of(2) { "before" } else { "after" })).0
}

/// Lives with up to four kills each at random instants.
fn at_random(end: &str, kills: u64, seed: u64) -> Tally {
    let began = Instant::now();
    let (quiet, _) = life(end, "undisturbed", |_| End::ByItself);
    let mut whole = u64::try_from(began.elapsed().as_millis()).unwrap();
    quiet.clean();
    let mut random = Seeded(seed);
    let mut total = Tally::default();
    while total.kills < kills {
        let (several, began) = (1 + random.below(4), Instant::now());
        let what = format!("{end}, seed {seed}, after {} kills", total.kills);
        let (tally, _) =
            life(
                end,
                &what,
                |before| {
                    if before < several { End::After(Duration::from_millis(random.below(whole))) } else { End::ByItself }
                },
            );
        // On a machine that has less to do by now, instants are sought in a shorter time.
        if tally.kills == 0 {
            whole = whole.min(u64::try_from(began.elapsed().as_millis()).unwrap()).max(100);
        }
        total.add(tally);
    }
    total
}

#[test]
fn killed_at_every_few_writes_nothing_is_lost_or_done_twice() {
    println!("{HEAD}");
    for end in ["ok", "undo"] {
        let tally = again_and_again(end, 0);
        println!("{}", tally.line(&format!("every few writes, {end}")));
        assert!(tally.kills >= 10, "{} kills", tally.kills);
        tally.clean();
    }
}

#[test]
fn killed_at_boundaries_and_at_random_nothing_is_lost_or_done_twice() {
    println!("{HEAD}");
    for (end, when, stride) in [("ok", "before", 9), ("ok", "after", 10), ("undo", "before", 15), ("undo", "after", 16)] {
        let tally = at_boundaries(end, when, stride);
        println!("{}", tally.line(&format!("{when} every {stride}th write, {end}")));
        assert!(tally.kills >= 4, "{} kills", tally.kills);
        tally.clean();
    }
    let tally = at_random("undo", 10, 1);
    println!("{}", tally.line("at random, undo"));
    tally.clean();
}

/// `make sweep` runs both of these.
#[test]
#[ignore = "a few minutes; `make sweep`"]
fn the_whole_sweep_of_a_run_that_succeeds() {
    whole("ok");
}

#[test]
#[ignore = "a few minutes; `make sweep`"]
fn the_whole_sweep_of_a_run_that_is_undone() {
    whole("undo");
}

fn whole(end: &str) {
    println!("{HEAD}");
    let mut total = Tally::default();
    let mut told = |mode: &str, tally: Tally| {
        println!("{}", tally.line(mode));
        tally.clean();
        total.add(tally);
    };
    told(&format!("at random, {end}"), at_random(end, 100, 7));
    for from in 0..3 {
        told(&format!("every few writes, {end}, {from}"), again_and_again(end, from));
    }
    for when in ["before", "after"] {
        told(&format!("{when} each write, {end}"), at_boundaries(end, when, 1));
    }
    println!("{}", total.line(&format!("all, {end}")));
}
