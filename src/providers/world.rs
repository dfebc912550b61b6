//! The real world of one estate: makes each provider when it is first asked for and keeps it.
//!
//! Nothing is contacted here. A provider that the estate does not describe, or that this build was made
//! without, is a `Config` error that says what to write.

use super::{
    clock::Clock,
    http::HttpClient,
    lease::HttpLease,
    machine::Machine,
    patroni::Patroni,
    pooler::PgBouncer,
    port::*,
    postgres,
    postgres::Postgres,
    process::LocalProcesses,
    replication::{Dial, Target},
    resolver::DnsResolver,
    rfc2136,
    rfc2136::Updates,
    secrets, store, tsig,
};
use crate::model::estate::{Aws, Database, DnsPrimary, DnsProvider, Endpoint, Engine, Estate, Region, SecretRef, TsigAlgorithm};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

pub struct World {
    estate: Arc<Estate>,
    clock: Arc<dyn Clock>,
    http: Arc<HttpClient>,
    cloud: cloud::Cloud,
    sql: Mutex<HashMap<(String, String), Arc<Postgres>>>,
    stores: Mutex<HashMap<String, Arc<dyn ObjectWrite>>>,
}

impl World {
    #[must_use]
    pub fn new(estate: Arc<Estate>, clock: Arc<dyn Clock>) -> Self {
        let (http, cloud) = (Arc::new(HttpClient::new()), cloud::Cloud::default());
        Self { estate, clock, http, cloud, sql: Mutex::default(), stores: Mutex::default() }
    }

    fn region(&self, name: &str) -> PortResult<&Region> {
        self.estate.regions.get(name).ok_or_else(|| absent("region", name, self.estate.regions.keys()))
    }

    fn aws(&self, region: &str) -> PortResult<&Aws> {
        self.region(region)?.aws.as_ref().ok_or_else(|| {
            PortError::Config(format!(
                "the estate's region `{region}` has no `aws`: write there how its API is reached, at least `aws: {{ region: NAME }}`"
            ))
        })
    }

    fn database(&self, name: &str) -> PortResult<&Database> {
        self.estate.databases.get(name).ok_or_else(|| absent("database", name, self.estate.databases.keys()))
    }

    fn endpoint(&self, name: &str) -> PortResult<&Endpoint> {
        self.estate.endpoints.get(name).ok_or_else(|| absent("endpoint", name, self.estate.endpoints.keys()))
    }

    /// The servers that take the updates of an endpoint's zone. Where there is one, it is not named: it is the zone.
    fn primaries(&self, name: &str, endpoint: &Endpoint) -> PortResult<Vec<Holder<dyn DnsWrite>>> {
        let missing = || PortError::Config(format!("endpoint `{name}` has no `update`: write there which server takes its zone's updates"));
        let update = endpoint.update.as_ref().ok_or_else(missing)?;
        let primaries = update.primaries();
        let alone = primaries.len() == 1;
        let each = primaries.iter().map(|primary| {
            let dns: Arc<dyn DnsWrite> = Arc::new(Updates::new(updates(name, primary, update.notify)?, Arc::clone(&self.clock)));
            let server = if alone { String::new() } else { rfc2136::with_port(&primary.server) };
            Ok(Holder { server, region: primary.region.clone(), dns })
        });
        let each = each.collect::<PortResult<Vec<_>>>()?;
        if each.is_empty() { Err(missing()) } else { Ok(each) }
    }

    fn postgres(&self, database: &str, region: &str) -> PortResult<Arc<Postgres>> {
        let key = (database.to_owned(), region.to_owned());
        let mut made = self.sql.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sql) = made.get(&key) {
            return Ok(Arc::clone(sql));
        }
        let sql = Arc::new(self.make_postgres(database, region)?);
        made.insert(key, Arc::clone(&sql));
        Ok(sql)
    }

    fn make_postgres(&self, name: &str, region: &str) -> PortResult<Postgres> {
        let database = self.database(name)?;
        let instance = database
            .instances
            .get(region)
            .ok_or_else(|| absent(&format!("instance of database `{name}` in region"), region, database.instances.keys()))?;
        // An address in the estate needs no control plane: it may be the very thing that is down.
        let instances = match (&instance.host, database.engine) {
            (Some(_), _) => None,
            (None, Engine::RdsPostgres) => Some(self.instances(region)?),
            (None, Engine::Postgres) => {
                return Err(PortError::Config(format!(
                    "the estate does not say where `{name}` answers in `{region}`: write databases.{name}.instances.{region}.host"
                )));
            }
        };
        let settings = postgres::Settings {
            label: format!("{name} in {region}"),
            database: database.name.clone(),
            user: database.user.clone(),
            password: database.password.as_ref().map(secrets::read).transpose()?,
            host: instance.host.clone(),
            port: instance.port,
            instance: instance.id.clone(),
        };
        Ok(Postgres::new(settings, instances, Arc::clone(&self.clock)))
    }

    /// A server of one's own; RDS has no machine that anybody could reach.
    fn make_machine(&self, name: &str, region: &str) -> PortResult<Machine> {
        let database = self.database(name)?;
        let instance = database.instances.get(region);
        let instance =
            instance.ok_or_else(|| absent(&format!("instance of database `{name}` in region"), region, database.instances.keys()))?;
        let place = format!("databases.{name}.instances.{region}");
        let server = instance.server.clone().ok_or_else(|| {
            PortError::Config(format!("the estate does not say how the machine of `{name}` in `{region}` is reached: write {place}.server"))
        })?;
        let host = instance.host.clone().ok_or_else(|| PortError::Config(format!("write {place}.host")))?;
        Ok(Machine::new(format!("{name} in {region}"), server, host, instance.port.unwrap_or(5432)))
    }

    fn make_patroni(&self, name: &str, region: &str) -> PortResult<Patroni> {
        let instance = self.database(name)?.instances.get(region);
        let place = format!("databases.{name}.instances.{region}.patroni");
        let known = instance.and_then(|i| i.patroni.as_ref());
        let known =
            known.ok_or_else(|| PortError::Config(format!("the estate names no Patroni for `{name}` in `{region}`: write {place}")))?;
        let login = match (&known.user, &known.password) {
            (Some(user), Some(secret)) => Some((user.clone(), secrets::read(secret)?)),
            _ => None,
        };
        Ok(Patroni { http: self.http(), label: format!("{name} in {region}"), place, urls: known.urls.clone(), login })
    }

    fn make_poolers(&self, name: &str) -> PortResult<Vec<PgBouncer>> {
        let database = self.database(name)?;
        let make = |pooler: &crate::model::estate::Pooler| {
            Ok(PgBouncer {
                host: pooler.host.clone(),
                port: pooler.port,
                user: pooler.user.clone(),
                password: pooler.password.as_ref().map(secrets::read).transpose()?,
                database: pooler.database.clone().unwrap_or_else(|| database.name.clone()),
                file: pooler.file.clone(),
                reach: pooler.reach.clone(),
            })
        };
        database.poolers.iter().map(make).collect()
    }

    fn own_postgres(&self, database: &str, region: &str) -> PortResult<Arc<Postgres>> {
        if self.database(database)?.engine != Engine::Postgres {
            return Err(PortError::Config(format!("`{database}` is Amazon's: it is changed through its API")));
        }
        self.postgres(database, region)
    }

    fn make_store(&self, name: &str) -> PortResult<Arc<dyn ObjectWrite>> {
        let known = &self.estate.repositories;
        let repository = known.get(name).ok_or_else(|| absent("repository", name, known.keys()))?;
        // A directory has no API: its region says where it stands, and need not say how one is reached.
        let aws = match &repository.region {
            Some(region) if store::is_bucket(&repository.url) => Some(self.aws(region.as_str())?),
            Some(region) => self.region(region.as_str()).map(|_| None)?,
            None => None,
        };
        store::open(&repository.url, aws)
    }

    fn http_lease(&self, database: &str) -> PortResult<Arc<HttpLease>> {
        let source = self.database(database)?.lease.as_ref().ok_or_else(|| {
            PortError::Config(format!(
                "database `{database}` has no `lease` in the estate: without a lease its writers cannot be known to have stopped; write `lease: {{ url: … }}` (see docs/lease.md)"
            ))
        })?;
        let name = source.name.clone().unwrap_or_else(|| database.to_owned());
        Ok(Arc::new(HttpLease::new(self.http(), source.url.clone(), name)))
    }
}

/// The zone's servers, with the key read anew each time: it may have been changed.
fn updates(endpoint: &str, primary: &DnsPrimary, notify: bool) -> PortResult<rfc2136::Settings> {
    let key = primary.key.as_ref().map(|key| {
        let algorithm = match key.algorithm {
            TsigAlgorithm::HmacSha256 => tsig::Algorithm::Sha256,
            TsigAlgorithm::HmacSha384 => tsig::Algorithm::Sha384,
            TsigAlgorithm::HmacSha512 => tsig::Algorithm::Sha512,
        };
        let made = tsig::Key::new(&key.name, algorithm, &secrets::read(&key.secret)?);
        made.map_err(|e| PortError::Config(format!("endpoints.{endpoint}.update.key: {e}")))
    });
    let secondaries = primary.secondaries.iter().map(|server| rfc2136::with_port(server)).collect();
    Ok(rfc2136::Settings { primary: rfc2136::with_port(&primary.server), secondaries, key: key.transpose()?, notify })
}

fn absent<N: std::fmt::Display>(what: &str, name: &str, known: impl Iterator<Item = N>) -> PortError {
    let known: Vec<String> = known.map(|n| n.to_string()).collect();
    let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    PortError::Config(format!("the estate has no {what} `{name}`; it has: {list}"))
}

impl WorldRead for World {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }
    fn objects(&self, bucket: &str, region: &str) -> PortResult<Arc<dyn ObjectRead>> {
        Ok(self.objects_mut(bucket, region)?)
    }
    fn store(&self, repository: &str) -> PortResult<Arc<dyn ObjectRead>> {
        Ok(self.store_mut(repository)?)
    }
    fn instances(&self, region: &str) -> PortResult<Arc<dyn InstanceRead>> {
        Ok(self.instances_mut(region)?)
    }
    fn sql(&self, database: &str, region: &str) -> PortResult<Arc<dyn SqlRead>> {
        Ok(self.postgres(database, region)?)
    }
    fn dns(&self, endpoint: &str) -> PortResult<Arc<dyn DnsRead>> {
        Ok(self.dns_mut(endpoint)?)
    }
    fn holders(&self, endpoint: &str) -> PortResult<Vec<Holder<dyn DnsRead>>> {
        let all = self.holders_mut(endpoint)?.into_iter();
        Ok(all.map(|Holder { server, region, dns }| Holder { server, region, dns: dns as Arc<dyn DnsRead> }).collect())
    }
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(DnsResolver)
    }
    fn http(&self) -> Arc<dyn Http> {
        Arc::<HttpClient>::clone(&self.http)
    }
    fn lease(&self, database: &str) -> PortResult<Arc<dyn LeaseRead>> {
        Ok(self.http_lease(database)?)
    }
    fn servers(&self) -> Arc<dyn super::servers::Servers> {
        Arc::new(super::servers::LocalServers::new(Arc::clone(&self.clock)))
    }
    fn processes(&self) -> Arc<dyn Processes> {
        Arc::new(LocalProcesses::new(Arc::clone(&self.clock)))
    }
    fn replication(&self, name: &str, region: &str) -> PortResult<Arc<dyn Dial>> {
        let database = self.database(name)?;
        let instance = database.instances.get(region);
        let instance =
            instance.ok_or_else(|| absent(&format!("instance of database `{name}` in region"), region, database.instances.keys()))?;
        let host = instance.host.clone().ok_or_else(|| {
            PortError::Config(format!(
                "the estate gives no `host` for database `{name}` in region `{region}`: a base backup is streamed from a server of one's own \
                 (a managed one lets nobody replicate; take `database.snapshot` there)"
            ))
        })?;
        // Who may replicate need not be who may do everything.
        let (user, secret) = match &database.replication {
            Some(login) => (&login.user, login.password.as_ref()),
            None => (&database.user, database.password.as_ref()),
        };
        let password = secret.map(secrets::read).transpose()?;
        Ok(Arc::new(Target::new(host, instance.port.unwrap_or(5432), user.clone(), Some(database.name.clone()), password)))
    }
    fn cluster(&self, database: &str, region: &str) -> PortResult<Arc<dyn ClusterRead>> {
        Ok(self.own_postgres(database, region)?)
    }
    fn machine(&self, database: &str, region: &str) -> PortResult<Arc<dyn MachineRead>> {
        Ok(Arc::new(self.make_machine(database, region)?))
    }
    fn poolers(&self, database: &str) -> PortResult<Vec<Arc<dyn PoolerRead>>> {
        Ok(self.make_poolers(database)?.into_iter().map(|p| Arc::new(p) as Arc<dyn PoolerRead>).collect())
    }
    fn patroni(&self, database: &str, region: &str) -> PortResult<Arc<dyn PatroniRead>> {
        Ok(Arc::new(self.make_patroni(database, region)?))
    }
    fn secret(&self, reference: &SecretRef) -> PortResult<secrecy::SecretString> {
        secrets::read(reference)
    }
    fn control_plane_calls(&self) -> Option<u64> {
        Some(self.cloud.dns_calls())
    }
    fn who(&self) -> String {
        format!("{}@{}", super::who::person(), super::who::host())
    }
}

impl WorldWrite for World {
    fn objects_mut(&self, bucket: &str, region: &str) -> PortResult<Arc<dyn ObjectWrite>> {
        let regions = self.estate.buckets.get(bucket).ok_or_else(|| absent("bucket", bucket, self.estate.buckets.keys()))?;
        let place = regions.get(region).ok_or_else(|| absent(&format!("bucket `{bucket}` in region"), region, regions.keys()))?;
        self.cloud.bucket(self.aws(region)?, place)
    }
    fn store_mut(&self, repository: &str) -> PortResult<Arc<dyn ObjectWrite>> {
        let mut made = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = made.get(repository) {
            return Ok(Arc::clone(store));
        }
        let store = self.make_store(repository)?;
        made.insert(repository.to_owned(), Arc::clone(&store));
        Ok(store)
    }
    fn instances_mut(&self, region: &str) -> PortResult<Arc<dyn InstanceWrite>> {
        self.cloud.instances(self.aws(region)?, Arc::clone(&self.http), Arc::clone(&self.clock))
    }
    fn sql_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn SqlWrite>> {
        Ok(self.postgres(database, region)?)
    }
    fn dns_mut(&self, endpoint: &str) -> PortResult<Arc<dyn DnsWrite>> {
        let (name, endpoint) = (endpoint, self.endpoint(endpoint)?);
        match endpoint.provider {
            DnsProvider::Route53 => {
                // Route 53 has one API for all regions, which answers for us-east-1.
                let aws = endpoint.aws.clone().unwrap_or_else(|| Aws { region: "us-east-1".to_owned(), ..Aws::default() });
                self.cloud.dns(&aws, &self.clock)
            }
            DnsProvider::Rfc2136 => {
                let mut each = self.primaries(name, endpoint)?;
                match each.pop() {
                    Some(one) if each.is_empty() => Ok(one.dns),
                    // One of them is not the zone: whoever changes it changes each.
                    _ => Err(PortError::Config(format!(
                        "the zone of endpoint `{name}` has several servers that take updates: `dns.shift` and `dns.lower_ttl` write each of them"
                    ))),
                }
            }
        }
    }
    fn holders_mut(&self, endpoint: &str) -> PortResult<Vec<Holder<dyn DnsWrite>>> {
        let known = self.endpoint(endpoint)?;
        match known.provider {
            DnsProvider::Route53 => Ok(vec![Holder { server: String::new(), region: None, dns: self.dns_mut(endpoint)? }]),
            DnsProvider::Rfc2136 => self.primaries(endpoint, known),
        }
    }
    fn lease_mut(&self, database: &str) -> PortResult<Arc<dyn LeaseWrite>> {
        Ok(self.http_lease(database)?)
    }
    fn cluster_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn ClusterWrite>> {
        Ok(self.own_postgres(database, region)?)
    }
    fn machine_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn MachineWrite>> {
        Ok(Arc::new(self.make_machine(database, region)?))
    }
    fn poolers_mut(&self, database: &str) -> PortResult<Vec<Arc<dyn PoolerWrite>>> {
        Ok(self.make_poolers(database)?.into_iter().map(|p| Arc::new(p) as Arc<dyn PoolerWrite>).collect())
    }
    fn patroni_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn PatroniWrite>> {
        Ok(Arc::new(self.make_patroni(database, region)?))
    }
}

#[cfg(feature = "aws")]
mod cloud {
    //! AWS clients, one set for each way of reaching it that the estate writes down.
    use super::*;
    use crate::model::estate::Bucket;
    use crate::providers::{aws::AwsClients, rds::Rds, route53::Route53, s3::S3Bucket};

    #[derive(Default)]
    pub struct Cloud {
        made: Mutex<Vec<Made>>,
    }

    /// What was made for one way of reaching AWS.
    struct Made {
        aws: Aws,
        clients: Arc<AwsClients>,
        dns: Option<Arc<Route53>>,
    }

    impl Cloud {
        fn get(&self, aws: &Aws) -> Arc<AwsClients> {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = made.iter().find(|m| m.aws == *aws) {
                return Arc::clone(&found.clients);
            }
            let clients = Arc::new(AwsClients::new(Some(aws.clone())));
            made.push(Made { aws: aws.clone(), clients: Arc::clone(&clients), dns: None });
            clients
        }
        pub fn bucket(&self, aws: &Aws, place: &Bucket) -> PortResult<Arc<dyn ObjectWrite>> {
            Ok(Arc::new(S3Bucket::new(self.get(aws), place.bucket.clone(), place.prefix.clone())))
        }
        pub fn instances(&self, aws: &Aws, http: Arc<HttpClient>, clock: Arc<dyn Clock>) -> PortResult<Arc<dyn InstanceWrite>> {
            Ok(Arc::new(Rds::new(self.get(aws), http, clock)))
        }
        pub fn dns(&self, aws: &Aws, clock: &Arc<dyn Clock>) -> PortResult<Arc<dyn DnsWrite>> {
            let clients = self.get(aws);
            let mut all = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = all.iter_mut().find(|m| m.aws == *aws).map(|made| &mut made.dns);
            let fresh = || Arc::new(Route53::new(Arc::clone(&clients), Arc::clone(clock)));
            Ok(match kept {
                Some(kept) => kept.get_or_insert_with(fresh).clone(),
                None => fresh(),
            })
        }
        pub fn dns_calls(&self) -> u64 {
            self.made.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|made| made.clients.dns_calls.so_far()).sum()
        }
    }
}

#[cfg(not(feature = "aws"))]
mod cloud {
    //! What stands for AWS in a build without it.
    use super::*;
    use crate::model::estate::Bucket;

    /// Made and asked as the real one is.
    #[derive(Default)]
    pub struct Cloud {}

    fn without<T>(what: &str) -> PortResult<T> {
        Err(PortError::Config(format!("this Muster was built without AWS, so it cannot reach {what}: build it with `--features aws`")))
    }

    #[allow(clippy::unused_self)]
    impl Cloud {
        pub fn bucket(&self, _: &Aws, _: &Bucket) -> PortResult<Arc<dyn ObjectWrite>> {
            without("S3")
        }
        pub fn instances(&self, _: &Aws, _: Arc<HttpClient>, _: Arc<dyn Clock>) -> PortResult<Arc<dyn InstanceWrite>> {
            without("RDS")
        }
        pub fn dns(&self, _: &Aws, _: &Arc<dyn Clock>) -> PortResult<Arc<dyn DnsWrite>> {
            without("Route 53")
        }
        pub fn dns_calls(&self) -> u64 {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::clock::SystemClock;

    fn world(yaml: &str) -> World {
        let estate = crate::runbook::load::load_estate("test.yaml", yaml.as_bytes()).unwrap().estate;
        World::new(Arc::new(estate), Arc::new(SystemClock::new()))
    }
    fn says<T>(result: PortResult<T>, want: &[&str]) {
        match result {
            Err(PortError::Config(text)) => want.iter().for_each(|w| assert!(text.contains(w), "{text} lacks {w}")),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("must be refused"),
        }
    }

    #[test]
    fn what_the_estate_lacks_is_named_with_what_it_has() {
        let w = world(
            "regions: { east: {}, west: {} }\nbuckets: { models: { east: { bucket: m } } }\ndatabases: { p: { engine: rds-postgres, instances: { east: {} } } }",
        );
        says(w.objects("model", "east").map(|_| ()), &["no bucket `model`", "models"]);
        says(w.objects("models", "west").map(|_| ()), &["bucket `models` in region `west`", "east"]);
        says(w.objects("models", "east").map(|_| ()), &["region `east` has no `aws`"]);
        says(w.instances("north").map(|_| ()), &["no region `north`", "east, west"]);
        says(w.sql("p", "west").map(|_| ()), &["instance of database `p` in region `west`"]);
        says(w.sql("p", "east").map(|_| ()), &["region `east` has no `aws`"]);
        says(w.lease("p").map(|_| ()), &["no `lease`", "docs/lease.md"]);
        says(w.dns("api").map(|_| ()), &["no endpoint `api`", "none"]);
        says(w.store("vault").map(|_| ()), &["no repository `vault`", "none"]);
    }

    #[test]
    fn a_repository_is_opened_where_its_url_says() {
        let w = world(
            "regions: { east: {} }\nrepositories: { disk: { url: /srv/vault }, near: { url: /srv/near, region: east }, s3: { url: 's3://b', region: east }, web: { url: 'http://b' } }",
        );
        let (once, twice) = (w.store_mut("disk").unwrap(), w.store_mut("disk").unwrap());
        assert!(Arc::ptr_eq(&once, &twice) && once.place("x").is_none());
        assert!(w.store("near").is_ok(), "a directory in a region of machines of one's own");
        says(w.store("s3").map(|_| ()), &["region `east` has no `aws`"]);
        says(w.store("web").map(|_| ()), &["http://b", "s3://BUCKET"]);
    }

    #[test]
    fn a_database_with_an_address_needs_no_control_plane() {
        let w =
            world("databases: { p: { engine: rds-postgres, instances: { east: { host: 127.0.0.1, port: 1 } } } }\nregions: { east: {} }");
        assert!(w.sql("p", "east").is_ok() && w.sql_mut("p", "east").is_ok());
    }
}
