//! Finding and reading what people wrote: the estate, runbooks, drills.
//!
//! A runbook or drill is named by a path, or by a name that is sought beside the file that names it, then
//! in `runbooks/` or `drills/` beside the estate. A lab's estate without addresses takes them from the
//! lab that is up.

use super::{Muster, ServiceError};
use crate::actions::Known;
use crate::model::{
    estate::{Endpoint, Estate, Repository},
    ids::RepositoryName,
    plan::*,
};
use crate::runbook::{
    compile::compile,
    diagnostic::{Diagnostic, suggest},
    lint::check_drill,
    load::{LoadedDrill, LoadedRunbook, load_drill, load_estate, load_runbook},
    parse::{MAX_BYTES, check_size},
    reach::{lint_reach, waive},
};
use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

/// Which folder a name is sought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    Runbooks,
    Drills,
}

impl Folder {
    fn name(self) -> &'static str {
        match self {
            Self::Runbooks => "runbooks",
            Self::Drills => "drills",
        }
    }
    fn what(self) -> &'static str {
        match self {
            Self::Runbooks => "runbook",
            Self::Drills => "drill",
        }
    }
}

/// The bytes of a file that is not too large to be one of ours.
pub fn read(path: &Path) -> Result<Vec<u8>, ServiceError> {
    let name = path.display().to_string();
    let fail =
        |e: std::io::Error| ServiceError::Invalid(vec![Diagnostic::error(&name, "unreadable", format!("{name} cannot be read: {e}"))]);
    let file = std::fs::File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let small = |size| check_size(&name, size).map_err(|e| ServiceError::Invalid(vec![*e]));
    small(size)?;
    // A pipe or a device has no size, and perhaps no end.
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(fail)?;
    small(bytes.len() as u64)?;
    Ok(bytes)
}

/// Does it say so in its top-level key? What cannot be read is told by whoever reads it next.
fn is_drill(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line.starts_with("drill:")))
}

impl Muster {
    fn home(&self) -> PathBuf {
        self.estate_file.parent().map_or_else(PathBuf::new, Path::to_owned)
    }

    /// The file that a name stands for.
    pub fn resolve(&self, name: &str, folder: Folder, beside: Option<&Path>) -> Result<PathBuf, ServiceError> {
        let direct = PathBuf::from(name);
        if direct.is_file() {
            return Ok(direct);
        }
        let looks_like_path = name.contains('/') || Path::new(name).extension().is_some_and(|e| e == "yaml" || e == "yml");
        let mut places = Vec::new();
        places.extend(beside.and_then(Path::parent).map(Path::to_owned));
        places.push(self.home().join(folder.name()));
        for place in &places {
            let names = if looks_like_path { vec![name.to_owned()] } else { vec![format!("{name}.yaml"), format!("{name}.yml")] };
            // A drill and its runbook may well have the same name: who asks for a runbook by its name means no drill.
            let other = |path: &PathBuf| path.is_file() && (looks_like_path || folder != Folder::Runbooks || !is_drill(path));
            if let Some(found) = names.iter().map(|name| place.join(name)).find(other) {
                return Ok(found);
            }
        }
        let known = self.names(folder);
        let near = suggest(name, known.iter().map(String::as_str)).map(|help| format!("; {help}")).unwrap_or_default();
        let sought: Vec<_> =
            places.iter().map(|p| if p.as_os_str().is_empty() { ".".to_owned() } else { p.display().to_string() }).collect();
        Err(ServiceError::Usage(format!("there is no {} `{name}`, neither as a path nor in {}{near}", folder.what(), sought.join(", "))))
    }

    /// The names in a folder beside the estate.
    #[must_use]
    pub fn names(&self, folder: Folder) -> Vec<String> {
        let stem = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        self.folder(folder).iter().filter_map(stem).collect()
    }

    /// The YAML files in a folder beside the estate, sorted.
    #[must_use]
    pub fn folder(&self, folder: Folder) -> Vec<PathBuf> {
        yaml_files(&self.home().join(folder.name()))
    }

    /// The estate as written; an empty one when there is no file and none was asked for.
    pub fn written_estate(&self) -> Result<Estate, ServiceError> {
        if !self.estate_file.is_file() && self.estate_file == Path::new("muster.yaml") {
            return Ok(Estate::default());
        }
        let name = self.estate_file.display().to_string();
        Ok(load_estate(&name, &read(&self.estate_file)?).map_err(ServiceError::Invalid)?.estate)
    }

    /// The estate to act on: a lab's takes its addresses from the lab that is up.
    pub fn estate(&self) -> Result<Estate, ServiceError> {
        let written = self.written_estate()?;
        let addressed = |aws: &Option<crate::model::estate::Aws>| aws.as_ref().is_some_and(|aws| !aws.endpoints.is_empty());
        if !written.lab || written.regions.values().any(|region| addressed(&region.aws)) {
            return Ok(written);
        }
        let up = self.state.join("lab").join("muster.yaml");
        if !up.is_file() {
            let text = format!("{} is the lab's estate, and no lab is up here; start one with `muster lab up`", self.estate_file.display());
            return Err(ServiceError::Usage(text));
        }
        let name = up.display().to_string();
        let lab = load_estate(&name, &read(&up)?).map_err(ServiceError::Invalid)?.estate;
        let repositories = placed(written.repositories, &lab.repositories);
        let endpoints = lab.endpoints.into_iter().map(|(name, endpoint)| {
            let standby = written.endpoints.get(&name).and_then(|written| written.standby.clone());
            (name, Endpoint { standby, ..endpoint })
        });
        Ok(Estate {
            regions: lab.regions,
            databases: lab.databases,
            buckets: lab.buckets,
            endpoints: endpoints.collect(),
            repositories,
            ..written
        })
    }

    /// The repositories, where they really are; no lab need be up for this, and no region be known.
    pub fn repositories(&self) -> Result<BTreeMap<RepositoryName, Repository>, ServiceError> {
        let written = self.written_estate()?;
        let up = self.state.join("lab").join("muster.yaml");
        if !written.lab || !up.is_file() {
            return Ok(written.repositories);
        }
        let lab = load_estate(&up.display().to_string(), &read(&up)?).map_err(ServiceError::Invalid)?.estate;
        Ok(placed(written.repositories, &lab.repositories))
    }

    pub fn runbook(&self, name: &str, beside: Option<&Path>) -> Result<LoadedRunbook, ServiceError> {
        let path = self.resolve(name, Folder::Runbooks, beside)?;
        load_runbook(&path.display().to_string(), &read(&path)?).map_err(ServiceError::Invalid)
    }

    pub fn drill(&self, name: &str) -> Result<(PathBuf, LoadedDrill), ServiceError> {
        let path = self.resolve(name, Folder::Drills, None)?;
        let loaded = load_drill(&path.display().to_string(), &read(&path)?).map_err(ServiceError::Invalid)?;
        Ok((path, loaded))
    }

    /// A runbook compiled for one run; what rule 7 forbids is refused here, unless it is waived for this run.
    pub fn plan(
        &self,
        book: &LoadedRunbook,
        estate: &Estate,
        inputs: &BTreeMap<String, String>,
        kind: Kind<'_>,
    ) -> Result<Plan, ServiceError> {
        let mut plan = compile(book, estate, inputs, kind.scope, kind.live, &Known).map_err(ServiceError::Invalid)?;
        if let Some(reason) = kind.waive {
            if reason.trim().is_empty() {
                return Err(ServiceError::Usage("--waive needs a reason: it stands on the record".to_owned()));
            }
            let person = Self::named(&plan.estate, None);
            if waive(&mut plan, &format!("{} (by {person}, for this run alone)", reason.trim())).is_empty() {
                tracing::warn!("there is nothing to waive: {} needs neither the failed region nor a global control plane", plan.runbook);
            }
        }
        let found = lint_reach(&plan);
        if found.iter().any(Diagnostic::is_error) { Err(ServiceError::Invalid(found)) } else { Ok(plan) }
    }

    /// A drill with both its runbooks compiled, checked against the estate.
    pub fn drill_plans(&self, path: &Path, loaded: &LoadedDrill, estate: &Estate) -> Result<(Plan, Option<Plan>), ServiceError> {
        let drill = &loaded.drill;
        let main = self.runbook(&drill.runbook, Some(path))?;
        let then = drill.then.as_ref().map(|then| self.runbook(&then.runbook, Some(path))).transpose()?;
        let found = check_drill(loaded, estate, Some(&main), then.as_ref());
        if found.iter().any(Diagnostic::is_error) {
            return Err(ServiceError::Invalid(found));
        }
        let plan = self.plan(&main, estate, &drill.inputs, Kind::drill())?;
        let back = match (&drill.then, &then) {
            (Some(then), Some(book)) => Some(self.plan(book, estate, &then.inputs, Kind::drill())?),
            _ => None,
        };
        Ok((plan, back))
    }
}

/// In which world a plan is to run, and what is waived for it.
#[derive(Clone, Copy)]
pub struct Kind<'a> {
    pub scope: Scope,
    pub live: bool,
    /// Why it may need what rule 7 forbids.
    pub waive: Option<&'a str>,
}

impl Kind<'_> {
    fn drill() -> Self {
        Self { scope: Scope::Drill, live: false, waive: None }
    }
}

/// A lab's repositories are where the lab put them; what else is said of them stays.
fn placed(
    written: BTreeMap<RepositoryName, Repository>,
    lab: &BTreeMap<RepositoryName, Repository>,
) -> BTreeMap<RepositoryName, Repository> {
    let place = |(name, written): (RepositoryName, Repository)| {
        let placed = match lab.get(&name) {
            Some(lab) => Repository { proof_valid: written.proof_valid, compression: written.compression, ..lab.clone() },
            None => written,
        };
        (name, placed)
    };
    written.into_iter().map(place).collect()
}

/// The YAML files of a folder, sorted; none when there is no such folder.
#[must_use]
pub fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path()).collect::<Vec<_>>());
    let mut files = entries.unwrap_or_default();
    files.retain(|path| path.is_file() && path.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    files
}
