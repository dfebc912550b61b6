//! A world in memory that behaves as the real one does where it matters to an action: changes take time,
//! answers get lost after the change was made, regions stop answering, resolvers cache.
//!
//! It stands behind the same ports as the real providers, under a clock whose sleep costs nothing, so
//! that the contract tests can put every action through every fault in milliseconds. Whatever takes time
//! is kept as the instant at which it will be true: reading never changes the world, so that a dry run can
//! be shown to change nothing by comparing before and after.

mod clock;
mod cluster;
mod data;
mod instances;
mod net;
mod own;
mod servers;
mod state;

pub use clock::SimClock;
pub use net::{Handler, held_zone};
pub use servers::SimServers;
pub use state::{Server, SimInstance, SimLease, SimMachine, SimObject, SimPooler, State};

use crate::model::{
    estate::{Estate, SecretRef},
    ids::RegionName,
};
use crate::providers::{clock::Clock, port::*};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What becomes of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// It is carried out, and the answer is lost.
    AppliedButLost,
    /// It is lost on the way, and nobody says so.
    LostOnTheWay,
    /// Nothing listens.
    Unreachable,
}

/// The world; clones share it.
#[derive(Clone)]
pub struct SimWorld {
    pub(super) clock: Arc<SimClock>,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) handler: Arc<Mutex<Option<Handler>>>,
    /// What was asked of whom, beside the world: looking changes nothing in it.
    calls: Arc<Mutex<BTreeSet<(&'static str, String)>>>,
    estate: Arc<Estate>,
}

impl SimWorld {
    #[must_use]
    pub fn new(estate: Arc<Estate>) -> Self {
        let clock = Arc::new(SimClock::default());
        Self { clock, state: Arc::default(), handler: Arc::default(), calls: Arc::default(), estate }
    }
    #[must_use]
    pub fn estate(&self) -> Arc<Estate> {
        Arc::clone(&self.estate)
    }
    #[must_use]
    pub fn time(&self) -> Arc<SimClock> {
        Arc::clone(&self.clock)
    }
    /// Everything, as it is at this moment.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.settle(self.clock.now());
        state
    }
    /// Answers HTTP requests from now on.
    pub fn answer(&self, handler: impl Fn(&HttpRequest) -> PortResult<HttpResponse> + Send + Sync + 'static) {
        *self.handler.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(handler));
    }
    /// The `n`th write from now on (0 is the next) meets this fault.
    pub fn fault(&self, n: u64, fault: WriteFault) {
        let mut state = self.lock();
        state.fault = Some((state.writes + n, fault));
        state.lasting = false;
    }
    /// Every write from the `n`th on meets this fault, until [`SimWorld::heal`].
    pub fn lasting_fault(&self, n: u64, fault: WriteFault) {
        self.fault(n, fault);
        self.lock().lasting = true;
    }
    pub fn heal(&self) {
        self.lock().fault = None;
    }
    /// Spoils a byte in the largest pack of all repositories, which holds files and no list; gives it as it was.
    pub fn damage_pack(&self) -> Vec<((String, String, String), SimObject)> {
        let mut state = self.lock();
        let is_pack = |(bucket, _, key): &(String, String, String)| bucket.starts_with(state::REPOSITORIES) && key.starts_with("packs/");
        let largest = state.objects.iter_mut().filter(|(key, _)| is_pack(key)).max_by_key(|(_, object)| object.body.len());
        let spoil = |(key, object): (&(String, String, String), &mut SimObject)| {
            let before = (key.clone(), object.clone());
            // Of the first chunk, behind the header: never in the directory at the end.
            if let Some(byte) = object.body.get_mut(60) {
                *byte ^= 1;
            }
            before
        };
        largest.map(spoil).into_iter().collect()
    }
    /// How many writes were tried so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// The calls of providers so far, each with where it went.
    #[must_use]
    pub fn calls(&self) -> BTreeSet<(&'static str, String)> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    pub(super) fn asked(&self, call: &'static str, place: &str) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).insert((call, place.to_owned()));
    }

    /// Every change to the world comes through here, and may meet its fault.
    pub(super) fn write<T>(&self, change: impl FnOnce(&mut State, jiff::Timestamp) -> PortResult<T>) -> PortResult<T> {
        let now = self.clock.now();
        let mut state = self.lock();
        let number = state.writes;
        state.writes += 1;
        let fault = state.fault.filter(|(at, _)| *at == number || (state.lasting && *at < number)).map(|(_, fault)| fault);
        match fault {
            None => change(&mut state, now),
            Some(WriteFault::Unreachable) => Err(PortError::Unreachable("connection refused".into())),
            Some(WriteFault::LostOnTheWay) => Err(PortError::Unknown("no answer in time".into())),
            Some(WriteFault::AppliedButLost) => {
                change(&mut state, now)?;
                Err(PortError::Unknown("the answer was lost".into()))
            }
        }
    }
    pub(super) fn up(&self, region: &str) -> PortResult<()> {
        if self.lock().down.contains(region) {
            return Err(PortError::Unreachable(format!("region {region} does not answer")));
        }
        Ok(())
    }
    fn own(&self, database: &str, region: &str) -> Arc<own::Own> {
        Arc::new(own::Own { world: self.clone(), at: (database.to_owned(), region.to_owned()) })
    }
    fn data(&self, name: &str, region: &str) -> Arc<data::Data> {
        Arc::new(data::Data { world: self.clone(), name: name.to_owned(), region: region.to_owned() })
    }
}

impl WorldRead for SimWorld {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }
    fn objects(&self, bucket: &str, region: &str) -> PortResult<Arc<dyn ObjectRead>> {
        Ok(self.data(bucket, region))
    }
    fn store(&self, repository: &str) -> PortResult<Arc<dyn ObjectRead>> {
        Ok(self.store_mut(repository)?)
    }
    fn instances(&self, region: &str) -> PortResult<Arc<dyn InstanceRead>> {
        Ok(self.data("", region))
    }
    fn sql(&self, database: &str, region: &str) -> PortResult<Arc<dyn SqlRead>> {
        Ok(self.data(database, region))
    }
    fn dns(&self, _endpoint: &str) -> PortResult<Arc<dyn DnsRead>> {
        Ok(Arc::new(net::Net::new(self)))
    }
    fn holders(&self, endpoint: &str) -> PortResult<Vec<Holder<dyn DnsRead>>> {
        Ok(self
            .held(endpoint)
            .into_iter()
            .map(|(server, region, dns)| Holder { server, region, dns: Arc::new(dns) as Arc<dyn DnsRead> })
            .collect())
    }
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(net::Net::new(self))
    }
    fn http(&self) -> Arc<dyn Http> {
        Arc::new(net::Net::new(self))
    }
    fn lease(&self, database: &str) -> PortResult<Arc<dyn LeaseRead>> {
        Ok(self.lease_of(database)?)
    }
    fn servers(&self) -> Arc<dyn crate::providers::servers::Servers> {
        Arc::new(servers::SimServers)
    }
    fn processes(&self) -> Arc<dyn Processes> {
        Arc::new(net::Net::new(self))
    }
    fn replication(&self, database: &str, region: &str) -> PortResult<Arc<dyn crate::providers::replication::Dial>> {
        Ok(Arc::new(cluster::SimCluster { world: self.clone(), database: database.to_owned(), region: region.to_owned() }))
    }
    fn cluster(&self, database: &str, region: &str) -> PortResult<Arc<dyn ClusterRead>> {
        Ok(self.own(database, region))
    }
    fn machine(&self, database: &str, region: &str) -> PortResult<Arc<dyn MachineRead>> {
        Ok(self.own(database, region))
    }
    fn poolers(&self, _database: &str) -> PortResult<Vec<Arc<dyn PoolerRead>>> {
        let count = self.lock().poolers.len();
        Ok((0..count).map(|index| Arc::new(own::Pooler { world: self.clone(), index }) as Arc<dyn PoolerRead>).collect())
    }
    fn secret(&self, reference: &SecretRef) -> PortResult<secrecy::SecretString> {
        // The one that its repositories are opened with.
        if *reference == SecretRef::Env("SIM_VAULT".to_owned()) {
            return Ok("tide".to_owned().into());
        }
        Err(PortError::Config(format!("there is no secret {reference:?} in this world")))
    }
}

impl WorldWrite for SimWorld {
    fn objects_mut(&self, bucket: &str, region: &str) -> PortResult<Arc<dyn ObjectWrite>> {
        Ok(self.data(bucket, region))
    }
    /// A repository is a bucket with a name that no bucket has, in its region or in none.
    fn store_mut(&self, repository: &str) -> PortResult<Arc<dyn ObjectWrite>> {
        let known = self.estate.repositories.get(repository);
        let known = known.ok_or_else(|| PortError::Config(format!("the estate has no repository `{repository}`")))?;
        Ok(self.data(&format!("{}{repository}", state::REPOSITORIES), known.region.as_ref().map_or("", |region| region.as_str())))
    }
    fn instances_mut(&self, region: &str) -> PortResult<Arc<dyn InstanceWrite>> {
        Ok(self.data("", region))
    }
    fn sql_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn SqlWrite>> {
        Ok(self.data(database, region))
    }
    fn cluster_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn ClusterWrite>> {
        Ok(self.own(database, region))
    }
    fn machine_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn MachineWrite>> {
        Ok(self.own(database, region))
    }
    fn poolers_mut(&self, _database: &str) -> PortResult<Vec<Arc<dyn PoolerWrite>>> {
        let count = self.lock().poolers.len();
        Ok((0..count).map(|index| Arc::new(own::Pooler { world: self.clone(), index }) as Arc<dyn PoolerWrite>).collect())
    }
    fn dns_mut(&self, _endpoint: &str) -> PortResult<Arc<dyn DnsWrite>> {
        Ok(Arc::new(net::Net::new(self)))
    }
    fn holders_mut(&self, endpoint: &str) -> PortResult<Vec<Holder<dyn DnsWrite>>> {
        let each = self.held(endpoint).into_iter();
        Ok(each.map(|(server, region, dns)| Holder { server, region, dns: Arc::new(dns) as Arc<dyn DnsWrite> }).collect())
    }
    fn lease_mut(&self, database: &str) -> PortResult<Arc<dyn LeaseWrite>> {
        Ok(self.lease_of(database)?)
    }
}

impl SimWorld {
    /// The servers that hold the zone of an endpoint.
    fn held(&self, endpoint: &str) -> Vec<(String, Option<RegionName>, net::Net)> {
        let update = self.estate.endpoints.get(endpoint).and_then(|ep| ep.update.as_ref());
        let primaries = update.map(crate::model::estate::DnsUpdate::primaries).unwrap_or_default();
        if primaries.len() < 2 {
            return vec![(String::new(), None, net::Net::new(self))];
        }
        let each = primaries.into_iter().map(|one| {
            let held = Some((one.server.clone(), one.region.as_ref().map(ToString::to_string)));
            (one.server, one.region, net::Net { world: self.clone(), held })
        });
        each.collect()
    }
    fn lease_of(&self, database: &str) -> PortResult<Arc<net::Lease>> {
        if !self.lock().leases.contains_key(database) {
            return Err(PortError::Config(format!("database {database} has no lease in the estate")));
        }
        Ok(Arc::new(net::Lease { world: self.clone(), database: database.to_owned() }))
    }
}
