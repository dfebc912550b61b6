//! `muster status`: where the estate stands and what is open, on one screen.

use super::{
    Done,
    output::{Output, ms, seconds, short},
};
use crate::drill::as_found;
use crate::model::{ids::RunId, time::rfc3339_ms};
use crate::service::{Muster, view};
use serde_json::{Value, json};
use std::sync::Arc;

pub async fn main(muster: &Muster, output: &Output) -> Done {
    let estate = muster.estate()?;
    let world = crate::providers::world::World::new(Arc::new(estate.clone()), muster.clock.clone());
    let (facts, proofs) = futures::join!(as_found::capture(&world, &estate), muster.proofs(&estate));
    let recorded = muster.shared.is_some() || muster.state.join("journal.db").is_file();
    let (open, last, overridden) = if recorded {
        let journal = muster.existing_journal().await?;
        let open = journal.open().await?;
        let ids: Vec<_> = open.iter().map(|row| row.id.clone()).collect();
        let overridden = journal.holding(&ids, super::runs::OVERRIDDEN).await?;
        (open, muster.drill_history(1).await?.into_iter().next(), overridden)
    } else {
        (Vec::new(), None, Vec::new())
    };
    let written = muster.estate_file.is_file();
    let next = muster.drill_next(None, muster.clock.now(), 1)?.into_iter().next();
    if output.json {
        let next = next.map(|(drill, at)| json!({ "drill": drill, "at": rfc3339_ms(at) }));
        let view = |row| if muster.shared.is_some() { view::owned_row(row, &overridden) } else { view::row(row, &overridden) };
        let rows = open.iter().map(|row| {
            let mut view = view(row);
            view["abandoned"] = json!(super::runs::is_left(row, &open));
            view
        });
        let file = written.then_some(&muster.estate_file);
        output.object(&json!({
            "estate": facts, "estate_file": file, "proofs": proofs, "journal": recorded, "open": rows.collect::<Vec<_>>(),
            "last_drill": last, "next_drill": next
        }));
        return Ok(0);
    }
    let next = next.map_or("none is scheduled".to_owned(), |(drill, at)| format!("{drill} at {}", seconds(at)));
    let wrong = muster.drill_list().1.len();
    let but = if wrong == 0 { String::new() } else { format!(", but {wrong} in drills/ cannot be used: see {} validate", output.program) };
    let width = facts.keys().map(|fact| fact.chars().count()).max().unwrap_or_default();
    for (fact, value) in &facts {
        output.line(format!("{fact:<width$}  {value}"));
    }
    if !written {
        output.line(format!("there is no estate here: no {}", muster.estate_file.display()));
    } else if facts.is_empty() {
        output.line("the estate names no database and no endpoint");
    }
    output.line("");
    for row in &open {
        let status = super::runs::status(&row.status, overridden.contains(&row.id)) + super::runs::left(row, &open);
        let owner = row.owner.as_ref().filter(|_| muster.shared.is_some()).map(|owner| format!(", owned by {owner}"));
        let (since, show) = (seconds(row.started_at), format!("{} show {}", output.program, short(&row.id)));
        output.line(format!("open        {} {status} since {since}{}: {show}", row.name, owner.unwrap_or_default()));
    }
    if !recorded {
        output.line(format!("open        not known: there is no journal in {}", muster.state.display()));
    } else if open.is_empty() {
        output.line("open        nothing");
    }
    for proof in &proofs {
        let what = proof.what.trim_start_matches("repository/").trim_end_matches(" proof");
        output.line(format!("last proof  {what}: {}: {}", proof.state, proof.detail));
    }
    output.line(format!("last drill  {}", last.as_ref().map_or("none is on record".to_owned(), last_drill)));
    output.line(format!("next drill  {next}{but}"));
    Ok(0)
}

fn last_drill(last: &Value) -> String {
    let text = |name: &str| last[name].as_str().unwrap_or_default();
    let at = text("started_at").parse().map_or_else(|_| text("started_at").to_owned(), seconds);
    let rto = last["rto"]["actual_ms"].as_i64().map(|took| format!(", recovery {}", ms(Some(took.into())))).unwrap_or_default();
    let lost = last["rpo"]["lost_writes"].as_u64().map(|lost| format!(", {lost} writes lost")).unwrap_or_default();
    format!("{} {} at {at}{rto}{lost} ({})", text("drill"), text("status"), short(&RunId::from(text("id"))))
}
