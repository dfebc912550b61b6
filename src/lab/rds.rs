//! The RDS-shaped API of one region: AWS's query protocol in front of real PostgreSQL servers.
//! A call is accepted or refused here; [`super::rds_work`] carries it out.

use super::{
    error::LabError,
    instances::{Instance, Snapshot, Task, split_arn},
    plan::{LabPlan, Ports, RegionPlan},
    rds_work::Rds,
    web,
    xml::{tag, wrap},
};
use crate::providers::clock::Clock;
use axum::{
    Form, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::post,
};
use secrecy::ExposeSecret;
use std::{collections::BTreeMap, sync::Arc};

/// AWS's code, the status that goes with it, and a sentence.
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

type Answer = Result<String, Refusal>;

fn refuse(code: &'static str, message: impl Into<String>) -> Refusal {
    let missing = code.ends_with("NotFound");
    Refusal { status: if missing { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST }, code, message: message.into() }
}

fn no_instance(id: &str) -> Refusal {
    refuse("DBInstanceNotFound", format!("DBInstance {id} not found."))
}

/// The parameters of one call: `Action`, and what it takes.
pub struct Params(BTreeMap<String, String>);

impl Params {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }
    fn need(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name).ok_or_else(|| refuse("MissingParameter", format!("The request must contain the parameter {name}.")))
    }
    fn tags(&self) -> BTreeMap<String, String> {
        let keys = self.0.iter().filter(|(k, _)| k.starts_with("Tags.") && k.ends_with(".Key"));
        keys.map(|(k, key)| (key.clone(), self.get(&k.replace(".Key", ".Value")).unwrap_or_default().to_owned())).collect()
    }
    fn list(&self, prefix: &str) -> Vec<&str> {
        self.0.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(_, v)| v.as_str()).collect()
    }
}

/// Serves until the process is killed.
/// # Errors
/// When its file or its port is not to be had.
pub async fn serve(plan: Arc<LabPlan>, region: &str, clock: Arc<dyn Clock>) -> Result<(), LabError> {
    let at = plan.region(region)?;
    let at = at.at(at.rds);
    let rds = Rds::open(plan, region, clock)?;
    rds.resume();
    web::serve(at, Router::new().route("/", post(call)).with_state(rds)).await
}

async fn call(State(rds): State<Arc<Rds>>, headers: HeaderMap, Form(form): Form<BTreeMap<String, String>>) -> Response {
    let request = rds.clock.new_id();
    let params = Params(form);
    let action = params.get("Action").unwrap_or_default().to_owned();
    let answer = if web::names_key(&headers, rds.access_key.expose_secret()) {
        dispatch(&rds, &action, &params)
    } else {
        Err(Refusal {
            status: StatusCode::FORBIDDEN,
            code: "InvalidClientTokenId",
            message: "The security token included in the request is invalid.".to_owned(),
        })
    };
    match answer {
        Ok(result) => {
            let meta = wrap("ResponseMetadata", &tag("RequestId", &request));
            let body = wrap(&format!("{action}Result"), &result) + &meta;
            let name = format!("{action}Response");
            web::xml(StatusCode::OK, &format!("<{name} xmlns=\"http://rds.amazonaws.com/doc/2014-10-31/\">{body}</{name}>"))
        }
        Err(no) => {
            let error = wrap("Error", &(tag("Type", "Sender") + &tag("Code", no.code) + &tag("Message", no.message)));
            let body = error + &tag("RequestId", request);
            web::xml(no.status, &format!("<ErrorResponse xmlns=\"http://rds.amazonaws.com/doc/2014-10-31/\">{body}</ErrorResponse>"))
        }
    }
}

fn dispatch(rds: &Arc<Rds>, action: &str, params: &Params) -> Answer {
    match action {
        "DescribeDBInstances" => describe_instances(rds, params),
        "DescribeDBSnapshots" => describe_snapshots(rds, params),
        "PromoteReadReplica" => promote(rds, params),
        "CreateDBSnapshot" => create_snapshot(rds, params),
        "CreateDBInstanceReadReplica" => create_replica(rds, params),
        "DeleteDBInstance" => delete(rds, params),
        "DeleteDBSnapshot" => delete_snapshot(rds, params),
        "StopDBInstance" => start_or_stop(rds, params, "available", "stopping", Task::Stop),
        "StartDBInstance" => start_or_stop(rds, params, "stopped", "starting", Task::Start),
        "AddTagsToResource" => add_tags(rds, params),
        "ListTagsForResource" => list_tags(rds, params),
        _ => Err(refuse("InvalidAction", format!("The lab's RDS does not know the action {action}."))),
    }
}

fn describe_instances(rds: &Rds, params: &Params) -> Answer {
    let state = rds.read();
    let wanted = params.get("DBInstanceIdentifier");
    let wanted = wanted.map(|id| split_arn(id).map_or(id, |(_, id)| id));
    if let Some(id) = wanted.filter(|id| !state.instances.contains_key(*id)) {
        return Err(no_instance(id));
    }
    let place = rds.place();
    let found: String = state.instances.values().filter(|i| wanted.is_none_or(|id| id == i.id)).map(|i| instance_xml(&place, i)).collect();
    Ok(wrap("DBInstances", &found))
}

fn describe_snapshots(rds: &Rds, params: &Params) -> Answer {
    let state = rds.read();
    let (wanted, of) = (params.get("DBSnapshotIdentifier"), params.get("DBInstanceIdentifier"));
    if let Some(id) = wanted.filter(|id| !state.snapshots.contains_key(*id)) {
        return Err(refuse("DBSnapshotNotFound", format!("DBSnapshot {id} not found.")));
    }
    let place = rds.place();
    let found: String = state
        .snapshots
        .values()
        .filter(|s| wanted.is_none_or(|id| id == s.id) && of.is_none_or(|id| id == s.instance))
        .map(|s| snapshot_xml(&place, s))
        .collect();
    Ok(wrap("DBSnapshots", &found))
}

/// Takes an instance that is in the right state into the next one, and starts the work.
fn begin(rds: &Arc<Rds>, id: &str, from: &[&str], to: &str, task: Task) -> Answer {
    let instance = rds.change(|state| {
        let instance = state.instances.get_mut(id).ok_or_else(|| no_instance(id))?;
        if !from.contains(&instance.status.as_str()) {
            let message = format!("Instance {id} is not in {} state: it is {}.", from.join(" or "), instance.status);
            return Err(refuse("InvalidDBInstanceState", message));
        }
        to.clone_into(&mut instance.status);
        instance.task = Some(task);
        Ok(instance.clone())
    })?;
    rds.work(&instance);
    Ok(instance_xml(&rds.place(), &instance))
}

fn promote(rds: &Arc<Rds>, params: &Params) -> Answer {
    let id = params.need("DBInstanceIdentifier")?;
    if rds.read().instances.get(id).is_some_and(|i| i.replicates_from.is_none()) {
        return Err(refuse("InvalidDBInstanceState", format!("DB Instance {id} is not a read replica.")));
    }
    begin(rds, id, &["available"], "modifying", Task::Promote)
}

fn start_or_stop(rds: &Arc<Rds>, params: &Params, from: &str, to: &str, task: Task) -> Answer {
    begin(rds, params.need("DBInstanceIdentifier")?, &[from], to, task)
}

fn create_snapshot(rds: &Arc<Rds>, params: &Params) -> Answer {
    let (id, snapshot) = (params.need("DBInstanceIdentifier")?, params.need("DBSnapshotIdentifier")?);
    let now = rds.clock.now();
    let fresh = rds.change(|state| {
        free_snapshot(&state.snapshots, snapshot)?;
        let source = state.instances.get_mut(id).ok_or_else(|| no_instance(id))?;
        if source.status != "available" {
            return Err(refuse("InvalidDBInstanceState", format!("Instance {id} is not available: it is {}.", source.status)));
        }
        "backing-up".clone_into(&mut source.status);
        source.task = Some(Task::Snapshot { snapshot: snapshot.to_owned() });
        let fresh = Snapshot {
            id: snapshot.to_owned(),
            instance: id.to_owned(),
            resource_id: source.resource_id.clone(),
            status: "creating".to_owned(),
            created: now,
            tags: params.tags(),
        };
        state.snapshots.insert(snapshot.to_owned(), fresh.clone());
        Ok((fresh, source.clone()))
    })?;
    rds.work(&fresh.1);
    Ok(snapshot_xml(&rds.place(), &fresh.0))
}

fn free_snapshot(all: &BTreeMap<String, Snapshot>, id: &str) -> Result<(), Refusal> {
    check_id(id)?;
    if all.contains_key(id) {
        return Err(refuse(
            "DBSnapshotAlreadyExists",
            format!("Cannot create the snapshot because a snapshot with the identifier {id} already exists."),
        ));
    }
    Ok(())
}

/// AWS's rule for identifiers; it also keeps them from naming another directory.
fn check_id(id: &str) -> Result<(), Refusal> {
    let letters = id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if letters && id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.len() <= 255 && !id.ends_with('-') && !id.contains("--") {
        return Ok(());
    }
    Err(refuse(
        "InvalidParameterValue",
        format!("The identifier `{id}` must begin with a letter and hold only letters, digits and single hyphens."),
    ))
}

fn create_replica(rds: &Arc<Rds>, params: &Params) -> Answer {
    let (id, source) = (params.need("DBInstanceIdentifier")?, params.need("SourceDBInstanceIdentifier")?);
    check_id(id)?;
    let arn = if split_arn(source).is_some() { source.to_owned() } else { rds.place().arn(source) };
    rds.upstream(&arn).map_err(|cause| no_instance(&format!("{source} ({cause})")))?;
    let place = rds.place();
    let instance = rds.change(|state| {
        if state.instances.contains_key(id) {
            return Err(refuse("DBInstanceAlreadyExists", format!("DB instance {id} already exists.")));
        }
        let used = |port: u16| state.instances.values().any(|i| i.port == port);
        let port = if used(place.postgres) { fresh_port(&place, used)? } else { place.postgres };
        let mut instance = Instance::new(id, port, Some(arn), &*rds.clock);
        instance.tags = params.tags();
        instance.task = Some(Task::Create);
        state.instances.insert(id.to_owned(), instance.clone());
        Ok(instance)
    })?;
    rds.work(&instance);
    Ok(instance_xml(&place, &instance))
}

fn fresh_port(place: &RegionPlan, used: impl Fn(u16) -> bool) -> Result<u16, Refusal> {
    let mut ports = Ports::after(place.postgres);
    let none = |e: LabError| refuse("InsufficientDBInstanceCapacity", format!("no port for another instance: {e}"));
    loop {
        let port = ports.tcp(&[place.address]).map_err(none)?;
        // What is stopped or lost comes back to its own.
        if !used(port) && ![place.s3, place.rds, place.inference].contains(&port) {
            return Ok(port);
        }
    }
}

fn delete(rds: &Arc<Rds>, params: &Params) -> Answer {
    let id = params.need("DBInstanceIdentifier")?;
    let skip = params.get("SkipFinalSnapshot").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let last = params.get("FinalDBSnapshotIdentifier").map(str::to_owned);
    match (&last, skip) {
        (None, false) => {
            let message = "FinalDBSnapshotIdentifier is required unless SkipFinalSnapshot is specified.";
            return Err(refuse("InvalidParameterCombination", message));
        }
        (Some(_), true) => {
            let message = "FinalDBSnapshotIdentifier cannot be specified when deleting with SkipFinalSnapshot.";
            return Err(refuse("InvalidParameterCombination", message));
        }
        (Some(snapshot), false) => free_snapshot(&rds.read().snapshots, snapshot)?,
        (None, true) => {}
    }
    begin(rds, id, &["available", "stopped", "failed"], "deleting", Task::Delete { final_snapshot: last })
}

fn delete_snapshot(rds: &Arc<Rds>, params: &Params) -> Answer {
    let id = params.need("DBSnapshotIdentifier")?;
    let gone = rds.change(|state| match state.snapshots.get(id) {
        None => Err(refuse("DBSnapshotNotFound", format!("DBSnapshot {id} not found."))),
        Some(s) if s.status == "creating" => Err(refuse("InvalidDBSnapshotState", format!("DBSnapshot {id} is being created."))),
        Some(_) => state.snapshots.remove(id).ok_or_else(|| refuse("DBSnapshotNotFound", id)),
    })?;
    rds.remove_snapshot_files(id);
    Ok(snapshot_xml(&rds.place(), &Snapshot { status: "deleted".to_owned(), ..gone }))
}

fn add_tags(rds: &Arc<Rds>, params: &Params) -> Answer {
    let arn = params.need("ResourceName")?;
    let id = split_arn(arn).map_or(arn, |(_, id)| id);
    rds.change(|state| {
        let tags = match (state.instances.get_mut(id), state.snapshots.get_mut(id)) {
            (Some(instance), _) => &mut instance.tags,
            (None, Some(snapshot)) => &mut snapshot.tags,
            (None, None) => return Err(no_instance(id)),
        };
        tags.extend(params.tags());
        Ok(())
    })?;
    Ok(String::new())
}

fn list_tags(rds: &Rds, params: &Params) -> Answer {
    let arn = params.need("ResourceName")?;
    let id = split_arn(arn).map_or(arn, |(_, id)| id);
    let state = rds.read();
    let tags = state.instances.get(id).map(|i| &i.tags).or_else(|| state.snapshots.get(id).map(|s| &s.tags));
    let only = params.list("TagKeys.");
    tags.map(|tags| tag_list(tags, &only)).ok_or_else(|| no_instance(id))
}

fn tag_list(tags: &BTreeMap<String, String>, only: &[&str]) -> String {
    let one = |(key, value): (&String, &String)| wrap("Tag", &(tag("Key", key) + &tag("Value", value)));
    wrap("TagList", &tags.iter().filter(|(k, _)| only.is_empty() || only.contains(&k.as_str())).map(one).collect::<String>())
}

fn instance_xml(place: &RegionPlan, i: &Instance) -> String {
    let mut inner = tag("DBInstanceIdentifier", &i.id)
        + &tag("DBInstanceClass", "db.lab.process")
        + &tag("Engine", "postgres")
        + &tag("DBInstanceStatus", &i.status)
        + &tag("MasterUsername", super::pg::USER)
        + &tag("DBName", super::pg::USER)
        + &tag("AllocatedStorage", 1)
        + &tag("InstanceCreateTime", i.created)
        + &tag("MultiAZ", false)
        + &tag("DeletionProtection", false)
        + &tag("DbiResourceId", &i.resource_id)
        + &tag("DBInstanceArn", place.arn(&i.id))
        + &tag_list(&i.tags, &[]);
    if i.status != "creating" {
        inner += &wrap("Endpoint", &(tag("Address", place.address) + &tag("Port", i.port)));
    }
    if let Some(source) = &i.replicates_from {
        inner += &tag("ReadReplicaSourceDBInstanceIdentifier", source);
    }
    wrap("DBInstance", &inner)
}

fn snapshot_xml(place: &RegionPlan, s: &Snapshot) -> String {
    let percent = if s.status == "available" { 100 } else { 0 };
    let arn = place.arn(&s.id).replace(":db:", ":snapshot:");
    wrap(
        "DBSnapshot",
        &(tag("DBSnapshotIdentifier", &s.id)
            + &tag("DBInstanceIdentifier", &s.instance)
            + &tag("DbiResourceId", &s.resource_id)
            + &tag("Status", &s.status)
            + &tag("PercentProgress", percent)
            + &tag("SnapshotCreateTime", s.created)
            + &tag("SnapshotType", "manual")
            + &tag("Engine", "postgres")
            + &tag("AllocatedStorage", 1)
            + &tag("DBSnapshotArn", arn)
            + &tag_list(&s.tags, &[])),
    )
}
