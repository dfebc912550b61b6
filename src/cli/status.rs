//! `muster status`: where the estate stands and what is open, on one screen.

use super::{Done, output::Output};
use crate::drill::as_found;
use crate::model::time::rfc3339_ms;
use crate::service::{Muster, view};
use serde_json::json;
use std::sync::Arc;

pub async fn main(muster: &Muster, output: &Output) -> Done {
    let estate = muster.estate()?;
    let world = crate::providers::world::World::new(Arc::new(estate.clone()), muster.clock.clone());
    let facts = as_found::capture(&world, &estate).await;
    let (open, last) = if muster.state.join("journal.db").is_file() {
        let journal = muster.journal().await?;
        (journal.open().await?, muster.drill_history(1).await?.into_iter().next())
    } else {
        (Vec::new(), None)
    };
    if output.json {
        output.object(&json!({ "estate": facts, "open": open.iter().map(view::row).collect::<Vec<_>>(), "last_drill": last }));
        return Ok(0);
    }
    for (fact, value) in &facts {
        output.line(format!("{fact:<36} {value}"));
    }
    output.line("");
    for row in &open {
        output.line(format!("open: {} {} {} since {}", row.name, row.id, row.status, rfc3339_ms(row.started_at)));
    }
    match last {
        None => output.line("no drill is on record"),
        Some(last) => output.line(format!(
            "last drill: {} {} at {}",
            last["drill"].as_str().unwrap_or_default(),
            last["status"].as_str().unwrap_or_default(),
            last["started_at"].as_str().unwrap_or_default()
        )),
    }
    Ok(0)
}
