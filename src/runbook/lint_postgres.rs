//! What is wrong with a database of the estate: keys that belong to another engine, and what a self-managed server
//! cannot be reached, stopped or pointed at without.

use super::{
    diagnostic::Diagnostic,
    lint_estate::{at, item_place},
    parse::Source,
};
use crate::model::{
    estate::{Database, Engine, Instance},
    node::{Node, Pos},
};
use std::path::Path;

pub(super) fn check(source: &Source, root: &Node, name: &str, database: &Database, found: &mut Vec<Diagnostic>) {
    let mut say = |pos: Pos, message: String, help: &str| found.push(source.error(pos, "database", message).help(help));
    let here = ["databases", name];
    for (region, instance) in &database.instances {
        let pos = at(root, &["databases", name, "instances", region.as_str()]);
        instance_of(database.engine, region.as_str(), instance, |message, help| say(pos, message, help));
    }
    if database.engine == Engine::RdsPostgres {
        for (key, there) in [("replication", database.replication.is_some()), ("poolers", !database.poolers.is_empty())] {
            if there {
                let pos = at(root, &[here[0], here[1], key]);
                say(pos, format!("`{key}` is for `engine: postgres`; this database is Amazon's"), "leave it out");
            }
        }
    }
    let list = root.get("databases").and_then(|all| all.get(name)).and_then(|one| one.get("poolers"));
    for (index, pooler) in database.poolers.iter().enumerate() {
        if !pooler.file.is_absolute() {
            let pos = item_place(list, index).unwrap_or(root.pos);
            say(pos, format!("the pooler's `file` is not an absolute path: {}", pooler.file.display()), ABSOLUTE);
        }
    }
}

const ABSOLUTE: &str = "write the whole path, as it is on that machine";

fn instance_of(engine: Engine, region: &str, instance: &Instance, mut say: impl FnMut(String, &str)) {
    if engine == Engine::RdsPostgres {
        for (key, there) in
            [("server", instance.server.is_some()), ("network", instance.network.is_some()), ("patroni", instance.patroni.is_some())]
        {
            if there {
                say(format!("`{key}` is for `engine: postgres`; this instance is Amazon's"), "leave it out");
            }
        }
        return;
    }
    if instance.id.is_some() {
        say(
            "`id` is an identifier of Amazon RDS; this database is `engine: postgres`".into(),
            "leave it out, or write `engine: rds-postgres`",
        );
    }
    if instance.host.is_none() {
        say(format!("nothing says where the server in `{region}` answers"), "write `host:`, and `port:` if it is not 5432");
    }
    if let Some(server) = &instance.server {
        let paths = [Some(&server.data), server.bin.as_ref()];
        for path in paths.into_iter().flatten().filter(|path| !Path::new(path).is_absolute()) {
            say(format!("not an absolute path: {}", path.display()), ABSOLUTE);
        }
    }
    if let Some(patroni) = &instance.patroni {
        if patroni.urls.is_empty() || patroni.urls.iter().any(|url| !matches!(url.scheme(), "http" | "https") || !url.has_host()) {
            say(
                "`patroni` needs the addresses of its members' REST APIs".into(),
                "write `urls: [https://db1.example.org:8008, …]`, one for each member",
            );
        }
        if patroni.user.is_some() != patroni.password.is_some() {
            say("of Patroni's user and password one is missing".into(), "write both `user` and `password`, or neither");
        }
    }
    if let Some(network) = &instance.network
        && (network.cut.is_empty() || network.verify.is_empty())
    {
        say("a cut that nobody verifies proves nothing".into(), "write both `cut` and `verify`, each as a list of arguments");
    }
}

#[cfg(test)]
mod tests {
    use crate::runbook::load::load_estate;

    fn said(database: &str) -> Vec<String> {
        let yaml = format!("regions: {{ east: {{}}, west: {{}} }}\ndatabases:\n  orders:\n{database}");
        match load_estate("test.yaml", yaml.as_bytes()) {
            Ok(_) => Vec::new(),
            Err(found) => found.iter().map(|d| d.message.clone()).collect(),
        }
    }

    #[test]
    fn a_server_of_ones_own_is_described_in_full() {
        let good = "    engine: postgres\n    replication: { user: repl, password: { env: R } }\n    poolers: [{ host: 127.0.0.1, file: /etc/pgbouncer/orders.ini, region: west }]\n    instances:\n      east: { host: db-east, server: { data: /var/lib/pg, reach: [ssh, postgres@db-east] } }\n      west: { host: db-west, network: { cut: [a], verify: [b] } }\n";
        assert_eq!(said(good), Vec::<String>::new());
    }

    #[test]
    fn what_belongs_to_the_other_engine_or_leads_nowhere_is_an_error() {
        for (database, want) in [
            ("    { engine: postgres, instances: { east: {} } }\n", "where the server in `east` answers"),
            ("    { engine: postgres, instances: { east: { host: a, id: b } } }\n", "identifier of Amazon RDS"),
            ("    { engine: postgres, instances: { east: { host: a, server: { data: pg } } } }\n", "not an absolute path: pg"),
            ("    { engine: postgres, instances: { east: { host: a, network: { cut: [a], verify: [] } } } }\n", "proves nothing"),
            (
                "    { engine: postgres, poolers: [{ host: a, file: b }], instances: { east: { host: a } } }\n",
                "`file` is not an absolute path",
            ),
            (
                "    { engine: postgres, poolers: [{ host: a, file: /b, region: north }], instances: { east: { host: a } } }\n",
                "no region `north`",
            ),
            ("    { engine: rds-postgres, instances: { east: { id: a, server: { data: /a } } } }\n", "`server` is for `engine: postgres`"),
            ("    { engine: postgres, instances: { east: { host: a, patroni: { urls: [] } } } }\n", "addresses of its members"),
            (
                "    { engine: postgres, instances: { east: { host: a, patroni: { urls: ['http://a:8008'], user: b } } } }\n",
                "one is missing",
            ),
            ("    { engine: rds-postgres, instances: { east: { id: a, patroni: { urls: ['http://a'] } } } }\n", "`patroni` is for"),
            ("    { engine: rds-postgres, replication: { user: a }, instances: { east: { id: a } } }\n", "`replication` is for"),
        ] {
            let found = said(database);
            assert!(found.iter().any(|message| message.contains(want)), "{database}: {found:?}");
        }
    }
}
