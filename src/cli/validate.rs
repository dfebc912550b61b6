//! `muster validate`: every diagnostic of every file at once.

use super::{Done, output::Output};
use crate::actions::Known;
use crate::runbook::{
    diagnostic::Diagnostic,
    lint::{check_drill, check_runbook},
    load::{Loaded, load},
};
use crate::service::{Muster, ServiceError, drills::calendar, files};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster validate\n  muster validate runbooks drills\n  muster validate runbooks/regional-failover.yaml --json"
)]
pub struct Args {
    /// Files and folders; the estate and the runbooks/ and drills/ beside it if left out
    paths: Vec<PathBuf>,
}

pub fn main(args: &Args, muster: &Muster, output: &Output) -> Done {
    let files = collect(args, muster)?;
    let estate = muster.written_estate();
    let mut found = Vec::new();
    // A broken estate is reported once, as itself.
    if let Err(ServiceError::Invalid(broken)) = &estate {
        found.extend(broken.clone());
    }
    let estate = estate.ok();
    for file in &files {
        if *file != muster.estate_file || estate.is_some() {
            found.extend(check(file, muster, estate.as_ref()));
        }
    }
    let errors = found.iter().filter(|one| one.is_error()).count();
    output.diagnostics(&found);
    if output.json {
        output.object(&json!({ "valid": errors == 0, "files": files.len(), "diagnostics": found }));
    } else {
        let word = if errors == 0 { "valid".to_owned() } else { format!("{errors} errors") };
        output.line(format!("{} files: {word}", files.len()));
    }
    Ok(if errors == 0 { 0 } else { 2 })
}

fn collect(args: &Args, muster: &Muster) -> Result<Vec<PathBuf>, ServiceError> {
    let mut files = Vec::new();
    if args.paths.is_empty() {
        files.extend(muster.estate_file.is_file().then(|| muster.estate_file.clone()));
        files.extend(muster.folder(files::Folder::Runbooks));
        files.extend(muster.folder(files::Folder::Drills));
    }
    for path in &args.paths {
        if path.is_dir() {
            files.extend(files::yaml_files(path));
        } else if path.exists() {
            files.push(path.clone());
        } else {
            return Err(ServiceError::Usage(format!("there is no {}", path.display())));
        }
    }
    if files.is_empty() {
        return Err(ServiceError::Usage("there is nothing to validate here: name files or folders".to_owned()));
    }
    Ok(files)
}

fn check(file: &Path, muster: &Muster, estate: Option<&crate::model::estate::Estate>) -> Vec<Diagnostic> {
    let name = file.display().to_string();
    let read = files::read(file).map_err(as_diagnostics).and_then(|bytes| load(&name, &bytes));
    match read {
        Err(found) => found,
        Ok(Loaded::Estate(loaded)) => loaded.warnings,
        Ok(Loaded::Runbook(loaded)) => check_runbook(&loaded, estate, &Known),
        Ok(Loaded::Drill(loaded)) => {
            let mut found = Vec::new();
            let mut book = |name: &str| match muster.runbook(name, Some(file)) {
                Ok(book) => Some(book),
                Err(ServiceError::Usage(why)) => {
                    found.push(Diagnostic::error(&loaded.source.file, "unknown-runbook", why));
                    None
                }
                // Its own errors are shown where it stands.
                Err(_) => None,
            };
            let main = book(&loaded.drill.runbook);
            let then = loaded.drill.then.as_ref().and_then(|then| book(&then.runbook));
            let schedule = loaded.drill.schedule.as_ref().map(calendar);
            if let Some(Err(why)) = schedule {
                found.push(Diagnostic::error(&loaded.source.file, "schedule", why.to_string()));
            }
            let empty = crate::model::estate::Estate::default();
            found.extend(check_drill(&loaded, estate.unwrap_or(&empty), main.as_ref(), then.as_ref()));
            found
        }
    }
}

fn as_diagnostics(error: ServiceError) -> Vec<Diagnostic> {
    match error {
        ServiceError::Invalid(found) => found,
        other => vec![Diagnostic::error("", "unreadable", other.to_string())],
    }
}
