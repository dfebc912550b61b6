//! The estate file that goes with a lab: what `up` writes, for every other command to use.

use super::{
    model::GOLDEN_KEY,
    pg::USER,
    plan::{LEASE, LabPlan, NAME, RECORD_TTL_S, RegionPlan, Servers, ZONE_ID, bucket_of, instance_of},
};
use std::fmt::Write;

/// The text of `muster.yaml`. Where Amazon's databases answer is left to the RDS API to say.
#[must_use]
pub fn estate_yaml(plan: &LabPlan) -> String {
    let secret = |name: &str| quoted(&plan.secret_file(name).display().to_string());
    let keys = |indent: &str| {
        format!(
            "{indent}credentials:\n{indent}  access_key_id: {{ file: {} }}\n{indent}  secret_access_key: {{ file: {} }}\n",
            secret("access_key_id"),
            secret("secret_access_key")
        )
    };
    let mut out = String::from("# Written by `muster lab up`: two regions in a box. `muster lab down` removes it.\nlab: true\nregions:\n");
    for (name, region) in &plan.regions {
        let rds = if plan.servers == Servers::Rds { format!(", rds: \"http://{}\"", region.at(region.rds)) } else { String::new() };
        let _ = write!(
            out,
            "  {name}:\n    aws:\n      region: {}\n{}      endpoints: {{ s3: \"http://{}\"{rds} }}\n",
            region.aws_region,
            keys("      "),
            region.at(region.s3),
        );
    }
    out.push_str("services:\n  scoring:\n    objectives: { rto: 60s, rpo: 5s }\n    uses: [predictions, models, inference, vault]\n");
    let (engine, instances) = databases(plan);
    let _ = write!(
        out,
        "databases:\n  predictions:\n    engine: {engine}\n    name: {USER}\n    user: {USER}\n    password: {{ file: {} }}\n    instances:\n{instances}    lease: {{ url: \"http://{}\", name: {LEASE} }}\n    tables: [predictions]\n",
        secret("database_password"),
        plan.outside.at(plan.outside.lease)
    );
    let _ = write!(out, "buckets:\n  models:\n{}", each(plan, |name, _| format!("    {name}: {{ bucket: {} }}\n", bucket_of(name))));
    // On this machine and in neither region: what is left when one of them is lost.
    let _ = write!(
        out,
        "repositories:\n  vault: {{ url: {}, password: {{ file: {} }} }}\n",
        quoted(&plan.home.join("vault").display().to_string()),
        secret("repository_password")
    );
    let port = plan.regions.values().next().map_or(0, |r| r.inference);
    let _ = write!(
        out,
        "endpoints:\n  inference:\n    name: {NAME}\n    provider: route53\n    zone: {ZONE_ID}\n    ttl: {RECORD_TTL_S}s\n    targets:\n{}    scheme: http\n    port: {port}\n    health: /healthz\n    golden: {{ bucket: models, key: {GOLDEN_KEY}, path: /predict }}\n    resolvers: [\"{}\"]\n    authority: [\"{}\"]\n    aws:\n      region: us-east-1\n{}      endpoints: {{ route53: \"http://{}\" }}\n",
        each(plan, |name, region| format!("      {name}: \"{}\"\n", region.address)),
        plan.outside.at(plan.outside.resolver),
        plan.outside.at(plan.outside.dns),
        keys("      "),
        plan.outside.at(plan.outside.route53)
    );
    out
}

/// The engine, and a line for each region's server.
fn databases(plan: &LabPlan) -> (&'static str, String) {
    match plan.servers {
        Servers::Rds => ("rds-postgres", each(plan, |name, _| format!("      {name}: {{ id: {} }}\n", instance_of(name)))),
        Servers::Own => {
            let bin = quoted(&plan.pg_bin.display().to_string());
            let server = |name: &str, region: &RegionPlan| {
                let data = quoted(&plan.data_dir(name, &instance_of(name)).display().to_string());
                format!(
                    "      {name}:\n        host: \"{}\"\n        port: {}\n        server: {{ data: {data}, bin: {bin} }}\n",
                    region.address, region.postgres
                )
            };
            ("postgres", each(plan, server))
        }
    }
}

fn each(plan: &LabPlan, line: impl Fn(&str, &RegionPlan) -> String) -> String {
    plan.regions.iter().map(|(name, region)| line(name, region)).collect()
}

/// As a double-quoted scalar, whatever a path may hold.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_an_estate() {
        let plan = crate::lab::plan::draw("/tmp/a \"b\"".into(), "/x".into(), "/y".into(), None).unwrap();
        let estate: crate::model::estate::Estate =
            crate::runbook::load::load_estate("muster.yaml", estate_yaml(&plan).as_bytes()).unwrap().estate;
        assert!(estate.lab);
        assert_eq!(estate.regions.len(), 2);
        let endpoint = &estate.endpoints["inference"];
        assert_eq!(endpoint.targets["east"], plan.regions["east"].address);
        assert_eq!(endpoint.resolvers, [plan.outside.at(plan.outside.resolver)]);
        assert_eq!(estate.databases["predictions"].instances["west"].id.as_deref(), Some("predictions-west"));
        assert_eq!(estate.databases["predictions"].tables, ["predictions"]);
        assert!(estate.repositories["vault"].url.ends_with("/vault"));

        let own = LabPlan { servers: Servers::Own, ..plan };
        let estate = crate::runbook::load::load_estate("muster.yaml", estate_yaml(&own).as_bytes()).unwrap().estate;
        let west = &estate.databases["predictions"].instances["west"];
        assert_eq!(west.server.as_ref().unwrap().data, own.data_dir("west", "predictions-west"));
        assert_eq!((west.host.clone(), west.port), (Some(own.regions["west"].address.to_string()), Some(own.regions["west"].postgres)));
        assert!(estate.databases["predictions"].lease.is_some());
    }
}
