//! `muster serve`: the scheduler.

use super::{Done, output::Output};
use crate::model::time::rfc3339_ms;
use crate::service::{Muster, serve};
use serde_json::json;
use std::sync::Arc;

pub async fn main(muster: &Muster, output: &Output) -> Done {
    let clock = muster.clock.clone();
    let out = output.clone();
    let log: serve::Log = Arc::new(move |text: &str| {
        let at = rfc3339_ms(clock.now());
        if out.json {
            out.line(json!({ "at": at, "serve": text }).to_string());
        } else {
            out.say(format!("{at} {text}"));
        }
    });
    serve::serve(muster, &log).await?;
    output.object(&json!({ "stopped": true }));
    Ok(0)
}
