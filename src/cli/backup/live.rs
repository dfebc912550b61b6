//! How far it has come: one line on a terminal, with share, rate and time left; JSON lines for programs; nothing on a
//! pipe.

use super::{super::output::Output, size, thousands};
use crate::service::{
    Muster,
    backup::watch::{Stand, Told, Watch},
};
use serde_json::json;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::JoinHandle;

const REDRAW: Duration = Duration::from_millis(100);
/// Programs are told at most four times a second.
const REPORT: Duration = Duration::from_millis(250);
/// The rate is that of so long.
const WINDOW: Duration = Duration::from_secs(5);

/// Takes the line away again when it is dropped.
pub struct Live {
    task: Option<JoinHandle<()>>,
    /// Whoever prints holds it: so nothing is printed after the end, and the result is the last line.
    ended: Arc<Mutex<bool>>,
    output: Output,
}

impl Drop for Live {
    fn drop(&mut self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        if let Some(task) = &self.task {
            task.abort();
        }
        self.output.live(None);
    }
}

/// Begins to look on. `what` says what is done: `backing up`.
pub fn start(what: &'static str, muster: &Muster, output: &Output) -> (Watch, Live) {
    let (shown, watched) = (output.clone(), output.is_watched());
    let watch = Watch::new(watched || output.json, move |told| tell(told, &shown));
    let ended: Arc<Mutex<bool>> = Arc::default();
    let task = (watched || output.json).then(|| {
        let (reader, clock, screen, ended) = (watch.reader(), muster.clock.clone(), output.clone(), ended.clone());
        tokio::spawn(async move {
            let mut pace = Pace::default();
            let mut last = Stand::default();
            loop {
                clock.sleep(if watched { REDRAW } else { REPORT }).await;
                let stand = reader.stand();
                let rate = pace.rate(clock.monotonic(), stand.bytes);
                let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                if *ended {
                    break;
                }
                if watched {
                    screen.live(Some(line(what, &stand, rate)));
                } else if stand != last {
                    report(what, &stand, rate, &screen);
                }
                last = stand;
            }
        })
    });
    (watch, Live { task, ended, output: output.clone() })
}

/// For commands that only look: warnings are told, and nothing is counted.
pub fn quiet(output: &Output) -> Watch {
    let shown = output.clone();
    Watch::new(false, move |told| tell(told, &shown))
}

fn tell(told: &Told, output: &Output) {
    if output.json {
        output.object(&json!(told));
        return;
    }
    match told {
        Told::Initialised { place } => output.say(format!("made a new repository in {place}")),
        Told::Parent { snapshot } => output.say(format!("comparing with snapshot {}", super::short(snapshot))),
        Told::Warning { text } => output.say(format!("{} {text}", output.paint("warning:", "33"))),
    }
}

fn report(what: &str, stand: &Stand, rate: Option<f64>, output: &Output) {
    let left = left(stand, rate).map(|left| left.as_millis() as u64);
    output.object(&json!({ "progress": {
        "doing": what, "files": stand.files, "bytes": stand.bytes,
        "total_files": known(stand.total_files), "total_bytes": known(stand.total_bytes),
        "bytes_per_second": rate.map(|rate| rate as u64), "left_ms": left,
    } }));
}

/// What is not known is null, never zero.
fn known(total: u64) -> Option<u64> {
    (total > 0).then_some(total)
}

fn left(stand: &Stand, rate: Option<f64>) -> Option<Duration> {
    let rate = rate.filter(|rate| *rate >= 1.0)?;
    let to_do = stand.total_bytes.checked_sub(stand.bytes).filter(|_| stand.total_bytes > 0)?;
    Duration::try_from_secs_f64(to_do as f64 / rate).ok()
}

/// Short enough for one line of any terminal: a line that wraps cannot be taken away.
fn line(what: &str, stand: &Stand, rate: Option<f64>) -> String {
    let mut parts = vec![what.to_owned()];
    if stand.total_bytes > 0 {
        // What grew since it was counted is no more than all of it.
        parts.push(format!("{:3}%", (stand.bytes.min(stand.total_bytes) as f64 / stand.total_bytes as f64 * 100.0) as u64));
    }
    if stand.files > 0 {
        parts.push(format!("{} files", thousands(stand.files)));
    }
    parts.push(size(stand.bytes));
    if let Some(rate) = rate {
        parts.push(format!("{}/s", size(rate as u64)));
    }
    if let Some(left) = left(stand, rate) {
        parts.push(format!("{} left", clock_time(left)));
    }
    parts.join(" · ").chars().take(78).collect()
}

/// `0:05`, `12:30`, `3:05:00`.
fn clock_time(length: Duration) -> String {
    let seconds = length.as_secs_f64().ceil() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// How fast it went in the last few seconds.
#[derive(Default)]
struct Pace {
    seen: VecDeque<(Duration, u64)>,
}

impl Pace {
    fn rate(&mut self, now: Duration, bytes: u64) -> Option<f64> {
        self.seen.push_back((now, bytes));
        while self.seen.len() > 2 && self.seen.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.seen.pop_front();
        }
        let (at, before) = *self.seen.front()?;
        let took = now.saturating_sub(at).as_secs_f64();
        (took > 0.0).then(|| bytes.saturating_sub(before) as f64 / took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_and_how_long() {
        let mut stand = Stand { files: 1_200, bytes: 512 << 20, total_files: 2_008, total_bytes: 2_048 << 20 };
        let rate = Some(f64::from(128 << 20));
        assert_eq!(line("backing up", &stand, rate), "backing up ·  25% · 1,200 files · 512 MiB · 128 MiB/s · 0:12 left");
        stand.total_bytes = 0;
        assert_eq!(line("backing up", &stand, None), "backing up · 1,200 files · 512 MiB");
        // It has grown since.
        stand.total_bytes = 1;
        assert_eq!(line("backing up", &stand, rate), "backing up · 100% · 1,200 files · 512 MiB · 128 MiB/s");
        assert_eq!(clock_time(Duration::from_secs(3_661)), "1:01:01");
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        assert_eq!(pace.rate(Duration::ZERO, 0), None);
        assert_eq!(pace.rate(Duration::from_secs(2), 200), Some(100.0));
        for second in 3..=20 {
            pace.rate(Duration::from_secs(second), 200 + (second - 2) * 1_000);
        }
        assert_eq!(pace.rate(Duration::from_secs(21), 19_200), Some(1_000.0), "the slow beginning is forgotten");
    }
}
