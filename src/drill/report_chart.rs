//! The drawings of a report: inline SVG, coloured by the page's style sheet alone.
//!
//! Colour is never the only carrier: bad probes stand above the line and good ones below it, bars carry
//! their status in words, parts their names.

use super::report::{ReportData, ReportStep, millis};
use crate::model::{drill::DrillKind, event::RunRole, status::StepStatus};
use jiff::Timestamp;
use maud::{Markup, html};

const WIDTH: f64 = 1_060.0;
/// Room for the names of the steps.
const GUTTER: f64 = 200.0;
const ROW: f64 = 26.0;
const STRIP_COLUMNS: f64 = 430.0;

/// Where an instant lies on a drawing.
#[derive(Clone, Copy)]
struct Axis {
    from: Timestamp,
    span_ms: f64,
    left: f64,
    width: f64,
}

impl Axis {
    fn new(from: Timestamp, until: Timestamp, left: f64) -> Self {
        Self { from, span_ms: ms_between(from, until).max(1.0), left, width: WIDTH - left - 10.0 }
    }
    fn x(&self, at: Timestamp) -> f64 {
        self.left + self.width * (ms_between(self.from, at) / self.span_ms).clamp(0.0, 1.0)
    }
    fn x_ms(&self, ms: f64) -> f64 {
        self.left + self.width * (ms / self.span_ms)
    }
    /// A round distance between ticks, about eight of them.
    fn ticks(&self) -> Vec<f64> {
        let raw = self.span_ms / 8.0;
        let steps =
            [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 1.5e4, 3e4, 6e4, 1.2e5, 3e5, 6e5, 1.8e6, 3.6e6];
        let step = steps.into_iter().find(|s| *s >= raw).unwrap_or(raw);
        (0..40).map(|n| f64::from(n) * step).take_while(|t| *t <= self.span_ms).collect()
    }
}

fn ms_between(from: Timestamp, until: Timestamp) -> f64 {
    until.duration_since(from).as_secs_f64() * 1_000.0
}

/// One decimal: enough for a pixel, and the same on every machine.
fn px(value: f64) -> String {
    format!("{value:.1}")
}

/// The objective as a track, the actual as a bar on it.
pub(super) fn gauge(actual: Option<u64>, objective: Option<u64>, met: Option<bool>) -> Markup {
    let scale = actual.unwrap_or(0).max(objective.unwrap_or(0)).max(1) as f64 * 1.08;
    let at = |v: u64| 300.0 * v as f64 / scale;
    let class = match met {
        Some(true) => "fill-good",
        Some(false) => "fill-bad",
        None => "fill-part",
    };
    html! {
        svg class="gauge" viewBox="0 0 300 22" role="img" aria-label="actual against objective" {
            rect x="0" y="6" width="300" height="10" rx="5" class="track" {}
            @if let Some(actual) = actual {
                rect x="0" y="6" width=(px(at(actual).max(3.0))) height="10" rx="5" class=(class) {}
            }
            @if let Some(objective) = objective {
                line x1=(px(at(objective))) x2=(px(at(objective))) y1="0" y2="22" class="mark" {}
            }
        }
    }
}

/// The parts, in order, with the class that colours each: five, of a restore two.
pub(super) fn parts(data: &ReportData) -> Vec<(&'static str, &'static str, Option<i64>)> {
    let p = &data.rto.parts_ms;
    if data.kind == DrillKind::Restore {
        return vec![("restore", "p3", p.act), ("verify", "p5", p.verify)];
    }
    vec![
        ("detect", "p1", p.detect),
        ("decide", "p2", p.decide),
        ("act", "p3", p.act),
        ("propagate", "p4", p.propagate),
        ("verify", "p5", p.verify),
    ]
}

/// The recovery time as one bar of its parts with the instants below it; nothing when it was not measured.
pub(super) fn stacked(data: &ReportData) -> Option<Markup> {
    let total = data.rto.actual_ms.filter(|t| *t > 0)? as f64;
    let (left, width) = (14.0, WIDTH - 28.0);
    // Parts may overlap (a resolver may have the answer before the change is confirmed); bars may not.
    let mut edges = vec![0.0_f64];
    let mut sum = 0.0;
    for (_, _, part) in parts(data) {
        sum += part? as f64;
        edges.push(sum.clamp(edges.last().copied().unwrap_or(0.0), total));
    }
    let x = |ms: f64| left + width * ms / total;
    let labels = spread(&edges.iter().map(|e| x(*e)).collect::<Vec<_>>(), 26.0, left, left + width);
    let bars: Vec<_> =
        parts(data).into_iter().zip(edges.windows(2)).filter_map(|(p, w)| Some((p, x(*w.first()?), x(*w.last()?)))).collect();
    Some(html! {
        svg viewBox={ "0 0 " (WIDTH) " 92" } role="img" aria-label="the parts of the recovery time" {
            @for ((name, class, part), from, until) in &bars {
                rect x=(px(*from)) y="8" width=(px(until - from)) height="38" class={ "part " (class) } {
                    title { (name) ": " (millis(*part)) }
                }
                @if until - from > 70.0 {
                    text x=(px((from + until) / 2.0)) y="25" class="inside strong" { (name) }
                    text x=(px((from + until) / 2.0)) y="39" class="inside" { (millis(*part)) }
                }
            }
            @for (n, (edge, label)) in edges.iter().zip(&labels).enumerate() {
                polyline points={ (px(x(*edge))) ",46 " (px(x(*edge))) ",54 " (px(*label)) ",64 " (px(*label)) ",68" } class="leader" {}
                text x=(px(*label)) y="82" class="axis middle" { "T" (n) }
            }
        }
    })
}

/// Moves labels apart, keeping their order and staying inside.
fn spread(at: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut out: Vec<f64> = Vec::new();
    for want in at {
        out.push(out.last().map_or(*want, |last| want.max(last + gap)).max(low));
    }
    let mut limit = high;
    for x in out.iter_mut().rev() {
        *x = x.min(limit);
        limit = *x - gap;
    }
    out
}

/// Probes and steps on one axis of time.
pub(super) fn timeline(data: &ReportData) -> Markup {
    let (from, until) = bounds(data);
    let axis = Axis::new(from, until, GUTTER);
    let strip = if data.samples.is_empty() { 0.0 } else { 58.0 };
    let top = 34.0;
    let bottom = top + strip + ROW * data.steps.len() as f64 + 6.0;
    let (marks, at) = marks(data, &axis);
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (px(bottom + 26.0)) } role="img" aria-label="probes and steps on a common axis of time" {
            @for tick in axis.ticks() {
                line x1=(px(axis.x_ms(tick))) x2=(px(axis.x_ms(tick))) y1=(px(top)) y2=(px(bottom)) class="grid" {}
                text x=(px(axis.x_ms(tick))) y=(px(bottom + 16.0)) class="axis middle" { "+" (millis(Some(tick as i64))) }
            }
            @for ((name, x), label) in marks.iter().zip(&at) {
                polyline points={ (px(*label)) ",16 " (px(*label)) ",20 " (px(*x)) ",30 " (px(*x)) "," (px(bottom)) } class={ "leader" @if *name == "fault" { " fault" } } {}
                text x=(px(*label)) y="12" class={ "axis middle" @if *name == "fault" { " strong" } } { (name) }
            }
            @if !data.samples.is_empty() { (probe_strip(data, &axis, top)) }
            @for (n, step) in data.steps.iter().enumerate() {
                @if n > 0 && step.role == RunRole::Then && data.steps.get(n - 1).is_some_and(|s| s.role == RunRole::Main) {
                    @let y = px(top + strip + ROW * n as f64);
                    line x1="0" x2=(WIDTH) y1=(y) y2=(y) class="divide" {}
                }
                (gantt_row(step, &axis, top + strip + ROW * n as f64))
            }
        }
    }
}

fn bounds(data: &ReportData) -> (Timestamp, Timestamp) {
    let samples = data.samples.iter().flat_map(|s| [s.sent, s.done]);
    let steps = data.steps.iter().filter_map(|s| Some((s.started_at?, s.ended_at()?))).flat_map(|(a, b)| [a, b]);
    let all: Vec<Timestamp> = samples.chain(steps).chain([data.started_at]).chain(data.finished_at).collect();
    (all.iter().min().copied().unwrap_or(data.started_at), all.iter().max().copied().unwrap_or(data.started_at))
}

/// The instants by name, and where their labels stand.
fn marks(data: &ReportData, axis: &Axis) -> (Vec<(&'static str, f64)>, Vec<f64>) {
    let i = &data.instants;
    let named = if data.kind == DrillKind::Restore {
        vec![("T0", i.first_applying), ("T1", i.restored), ("T2", i.recovered)]
    } else {
        vec![
            ("T0", i.last_good),
            ("fault", data.fault_at),
            ("T1", i.detected),
            ("T2", i.first_applying),
            ("T3", i.traffic_applied),
            ("T4", i.resolver_moved),
            ("T5", i.recovered),
        ]
    };
    let mut marks: Vec<_> = named.into_iter().filter_map(|(name, at)| Some((name, axis.x(at?)))).collect();
    marks.sort_by(|a, b| a.1.total_cmp(&b.1));
    let labels = spread(&marks.iter().map(|m| m.1).collect::<Vec<_>>(), 32.0, GUTTER, WIDTH - 16.0);
    (marks, labels)
}

/// Good answers below the line, missed ones above it; at most one mark a column, so that a drill of hours
/// is drawn as small as one of seconds.
fn probe_strip(data: &ReportData, axis: &Axis, top: f64) -> Markup {
    let column = axis.width / STRIP_COLUMNS;
    let mut seen = [std::collections::BTreeSet::new(), std::collections::BTreeSet::new()];
    for sample in &data.samples {
        let at = ((axis.x(sample.sent) - axis.left) / column).floor() as i64;
        let [good, bad] = &mut seen;
        if sample.good {
            good.insert(at)
        } else {
            bad.insert(at)
        };
    }
    let [good, bad] = seen;
    let middle = top + 24.0;
    let bars = |columns: &std::collections::BTreeSet<i64>, y: f64, class: &'static str| {
        html! { @for at in columns {
            rect x=(px(axis.left + column * *at as f64)) y=(px(y)) width=(px(column * 0.72)) height="16" class=(class) {}
        } }
    };
    html! {
        text x="0" y=(px(middle - 6.0)) class="axis" { "probes missed ▲" }
        text x="0" y=(px(middle + 14.0)) class="axis" { "probes good ▼" }
        (bars(&bad, middle - 18.0, "fill-bad"))
        line x1=(px(axis.left)) x2=(px(axis.left + axis.width)) y1=(px(middle)) y2=(px(middle)) class="grid" {}
        (bars(&good, middle + 2.0, "fill-good"))
    }
}

fn gantt_row(step: &ReportStep, axis: &Axis, y: f64) -> Markup {
    let (glyph, word, class) = looks(step.status);
    let label = match step.duration_ms {
        Some(ms) => format!("{glyph} {word} · {}", millis(i64::try_from(ms).ok())),
        None => format!("{glyph} {word}"),
    };
    let bar = step.started_at.zip(step.ended_at()).map(|(a, b)| (axis.x(a), axis.x(b).max(axis.x(a) + 2.0)));
    // The words stand after the bar where there is room, else before it.
    let (x, anchor) = match bar {
        Some((from, until)) if until + 12.0 + 6.2 * label.chars().count() as f64 > WIDTH => (from - 6.0, "end"),
        Some((_, until)) => (until + 6.0, "start"),
        None => (axis.left + 6.0, "start"),
    };
    html! {
        text x="0" y=(px(y + 17.0)) class="name" { (shorten(&step.id, 27)) title { (step.id) ", " (step.uses) } }
        @if let Some((from, until)) = bar {
            rect x=(px(from)) y=(px(y + 5.0)) width=(px(until - from)) height="16" rx="3" class={ "bar " (class) } {
                title { (step.id) ": " (label) }
            }
        }
        text x=(px(x)) y=(px(y + 17.0)) class="note" text-anchor=(anchor) { (label) }
    }
}

fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit - 1).chain(['…']).collect()
}

/// How a status looks: a sign, words and a class.
pub(super) fn looks(status: StepStatus) -> (&'static str, String, &'static str) {
    let (glyph, class) = match status {
        StepStatus::Succeeded => ("✓", "fill-good"),
        StepStatus::SucceededWithWarning => ("!", "fill-warn"),
        StepStatus::Failed | StepStatus::TimedOut => ("✗", "fill-bad"),
        StepStatus::FailedIgnored => ("✗", "fill-warn"),
        StepStatus::Indeterminate => ("?", "fill-warn"),
        StepStatus::Skipped | StepStatus::Cancelled => ("–", "fill-mute"),
        StepStatus::Undone => ("↶", "fill-mute"),
        StepStatus::Pending | StepStatus::Ready | StepStatus::WaitingApproval | StepStatus::Running => ("…", "fill-part"),
    };
    (glyph, status.word().replace('_', " "), class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_order_their_distance_and_stay_inside() {
        assert_eq!(spread(&[10.0, 11.0, 12.0], 20.0, 10.0, 200.0), [10.0, 30.0, 50.0]);
        assert_eq!(spread(&[180.0, 199.0, 200.0], 20.0, 10.0, 200.0), [160.0, 180.0, 200.0]);
        assert_eq!(spread(&[50.0, 100.0], 20.0, 10.0, 200.0), [50.0, 100.0]);
    }
}
