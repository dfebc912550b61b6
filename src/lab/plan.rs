//! Where everything of one lab stands: its directory, addresses, ports, keys. Made once by `up`,
//! written to disk, and read by every process of the lab and every later command.

use super::error::{LabError, LabResult, What};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

pub const REGIONS: [&str; 2] = ["east", "west"];
pub const OUTSIDE: &str = "outside";
pub const ZONE: &str = "scoring.test";
pub const ZONE_ID: &str = "ZLAB0SCORINGTEST";
pub const NAME: &str = "api.scoring.test";
pub const LEASE: &str = "predictions";
pub const ACCOUNT: &str = "000000000000";
pub const LEASE_TTL_MS: u64 = 1_000;
pub const RECORD_TTL_S: u32 = 2;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegionPlan {
    pub aws_region: String,
    pub address: Ipv4Addr,
    pub postgres: u16,
    pub s3: u16,
    pub rds: u16,
    pub inference: u16,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutsidePlan {
    pub address: Ipv4Addr,
    /// Authoritative server, UDP and TCP.
    pub dns: u16,
    /// Route 53's API.
    pub route53: u16,
    pub resolver: u16,
    pub lease: u16,
}

/// Whose the database servers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Servers {
    /// Amazon's: behind an API of the shape of RDS, which promotes, copies and deletes them
    #[default]
    Rds,
    /// One's own: reached through SQL and their machine, so that a primary and its standby can change places
    Own,
}

/// Written as `lab.json`, in the state directory and in the lab's home.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabPlan {
    pub home: PathBuf,
    /// The `muster` that processes are started from.
    pub exe: PathBuf,
    pub regions: BTreeMap<String, RegionPlan>,
    pub outside: OutsidePlan,
    /// Whom PostgreSQL runs as, when we are root.
    pub run_as: Option<(u32, u32)>,
    pub pg_bin: PathBuf,
    #[serde(default)]
    pub servers: Servers,
    /// False until `up` has finished: what is left of it must be cleaned up.
    pub complete: bool,
}

/// What can be turned while the lab runs. Read anew by the processes at each use.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Knobs {
    /// How long after a change the authoritative server answers with it.
    pub dns_delay_ms: u64,
    /// How much longer a prediction takes, by region.
    #[serde(default)]
    pub predict_delay_ms: BTreeMap<String, u64>,
}

impl RegionPlan {
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), port)
    }
    #[must_use]
    pub fn arn(&self, instance: &str) -> String {
        format!("arn:aws:rds:{}:{ACCOUNT}:db:{instance}", self.aws_region)
    }
}

impl OutsidePlan {
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), port)
    }
}

impl LabPlan {
    /// # Errors
    /// When the lab has no such region.
    pub fn region(&self, name: &str) -> LabResult<&RegionPlan> {
        self.regions.get(name).ok_or_else(|| LabError::NoRegion(name.to_owned()))
    }
    /// The directory of a region or of `outside`: what stands in it belongs to it.
    #[must_use]
    pub fn dir(&self, place: &str) -> PathBuf {
        self.home.join(place)
    }
    #[must_use]
    pub fn log(&self, place: &str, role: &str) -> PathBuf {
        self.dir(place).join("log").join(format!("{}.log", role.replace(':', "-")))
    }
    #[must_use]
    pub fn rds_file(&self, region: &str) -> PathBuf {
        self.dir(region).join("rds.json")
    }
    #[must_use]
    pub fn data_dir(&self, region: &str, instance: &str) -> PathBuf {
        self.dir(region).join("pg").join(instance)
    }
    #[must_use]
    pub fn snapshot_dir(&self, region: &str, snapshot: &str) -> PathBuf {
        self.dir(region).join("snapshots").join(snapshot)
    }
    #[must_use]
    pub fn secret_file(&self, name: &str) -> PathBuf {
        self.home.join("secrets").join(name)
    }
    /// # Errors
    /// When the file cannot be read.
    pub fn secret(&self, name: &str) -> LabResult<SecretString> {
        let path = self.secret_file(name);
        let text = fs::read_to_string(&path).what(path.display().to_string())?;
        Ok(SecretString::from(text.trim_end_matches('\n').to_owned()))
    }
    #[must_use]
    pub fn knobs(&self) -> Knobs {
        read_json(&self.home.join("knobs.json")).unwrap_or_default()
    }
    /// # Errors
    /// When the file cannot be read or is not a plan.
    pub fn load(path: &Path) -> LabResult<Self> {
        read_json(path)
    }
}

#[must_use]
pub fn instance_of(region: &str) -> String {
    format!("predictions-{region}")
}

#[must_use]
pub fn bucket_of(region: &str) -> String {
    format!("models-{region}")
}

/// # Errors
/// When the file is absent or is not of that type.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> LabResult<T> {
    let bytes = fs::read(path).what(path.display().to_string())?;
    serde_json::from_slice(&bytes).map_err(|e| LabError::Record { path: path.to_owned(), cause: e.to_string() })
}

/// Replaces the file in one step, so that a kill at any moment leaves the old or the new one whole.
/// # Errors
/// When the directory cannot be written.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> LabResult<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| LabError::Record { path: path.to_owned(), cause: e.to_string() })?;
    let fresh = path.with_extension("new");
    let mut file = fs::File::create(&fresh).what(fresh.display().to_string())?;
    file.write_all(&text).and_then(|()| file.sync_data()).what(fresh.display().to_string())?;
    fs::rename(&fresh, path).what(path.display().to_string())
}

/// # Errors
/// When the file cannot be written.
pub fn write_secret(path: &Path, secret: &SecretString) -> LabResult<()> {
    let mut file =
        fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).what(path.display().to_string())?;
    file.write_all(secret.expose_secret().as_bytes()).what(path.display().to_string())
}

/// The lab's home for a state directory: short, stable, and not below a directory that PostgreSQL's user cannot enter.
#[must_use]
pub fn home_for(state: &Path) -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    let mut base = std::env::temp_dir();
    if let Ok(real) = base.canonicalize() {
        base = real;
    }
    if uid == 0 && !open_to_all(&base) {
        base = PathBuf::from("/tmp");
    }
    base.join(format!("muster-lab-{uid}-{}", hash_of(state).get(..12).unwrap_or_default()))
}

fn hash_of(path: &Path) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(path.as_os_str().as_encoded_bytes()))
}

fn open_to_all(path: &Path) -> bool {
    path.ancestors().all(|p| fs::metadata(p).is_ok_and(|m| m.permissions().mode() & 0o001 != 0))
}

/// A /24 of 127/8 where nothing listens, sought from the home's hash on, and ports on it.
/// # Errors
/// When there is none, or the system gives no port.
pub fn draw(home: PathBuf, exe: PathBuf, pg_bin: PathBuf, run_as: Option<(u32, u32)>) -> LabResult<LabPlan> {
    let taken = subnets_in_use();
    let seed = u16::from_str_radix(hash_of(&home).get(..4).unwrap_or("0"), 16).unwrap_or(0);
    let subnet = (0..u16::MAX)
        .map(|step| seed.wrapping_add(step).to_be_bytes())
        .find(|net| (1..=250).contains(&net[0]) && !taken.contains(net))
        .ok_or(LabError::NoSubnet)?;
    let address = |host: u8| Ipv4Addr::new(127, subnet[0], subnet[1], host);
    let (east, west, outside) = (address(1), address(2), address(3));
    let mut ports = Ports::new(&home);
    // The same in both regions: DNS moves an address, and says nothing of ports.
    let inference = ports.tcp(&[east, west])?;
    let mut region = |address: Ipv4Addr, aws_region: &str| -> LabResult<RegionPlan> {
        let mut next = || ports.tcp(&[address]);
        let (postgres, s3, rds) = (next()?, next()?, next()?);
        Ok(RegionPlan { aws_region: aws_region.to_owned(), address, postgres, s3, rds, inference })
    };
    let regions = BTreeMap::from([("east".to_owned(), region(east, "us-east-1")?), ("west".to_owned(), region(west, "us-west-2")?)]);
    let (dns, resolver) = (ports.tcp_and_udp(outside)?, ports.tcp_and_udp(outside)?);
    let mut next = || ports.tcp(&[outside]);
    let outside = OutsidePlan { address: outside, dns, resolver, route53: next()?, lease: next()? };
    Ok(LabPlan { home, exe, regions, outside, run_as, pg_bin, servers: Servers::default(), complete: false })
}

/// Port numbers for servers that start later, none of them twice. They lie below those that the system gives to whoever
/// connects, or asks for any: one of those may be somebody's by the time that the server listens.
pub(super) struct Ports {
    next: u16,
    tried: u16,
    end: u16,
}

impl Ports {
    const FIRST: u16 = 10_000;

    /// Sought from a place of its own on for each home.
    fn new(home: &Path) -> Self {
        Self::after(u16::from_str_radix(hash_of(home).get(4..8).unwrap_or("0"), 16).unwrap_or(0))
    }

    pub(super) fn after(number: u16) -> Self {
        let given_away = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let lowest = given_away.split_whitespace().next().and_then(|word| word.parse().ok());
        // Where the system gives away nearly all, there is no better choice than among those.
        let end = lowest.filter(|lowest| *lowest >= Self::FIRST + 1_000).unwrap_or(32_768);
        Self { next: number, tried: 0, end }
    }

    /// One that is free for TCP on all these addresses.
    pub(super) fn tcp(&mut self, addresses: &[Ipv4Addr]) -> LabResult<u16> {
        self.find(|port| addresses.iter().all(|address| TcpListener::bind((*address, port)).is_ok()))
    }

    fn tcp_and_udp(&mut self, address: Ipv4Addr) -> LabResult<u16> {
        self.find(|port| TcpListener::bind((address, port)).is_ok() && UdpSocket::bind((address, port)).is_ok())
    }

    fn find(&mut self, free: impl Fn(u16) -> bool) -> LabResult<u16> {
        let all = self.end - Self::FIRST;
        while self.tried < all {
            self.tried += 1;
            self.next = self.next.wrapping_add(1);
            let port = Self::FIRST + self.next % all;
            if free(port) {
                return Ok(port);
            }
        }
        Err(LabError::NoPort)
    }
}

/// The second and third bytes of every 127/8 address that a socket is bound to.
fn subnets_in_use() -> BTreeSet<[u8; 2]> {
    let mut taken = BTreeSet::from([[0, 0]]);
    for table in ["/proc/net/tcp", "/proc/net/udp"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let local = line.split_whitespace().nth(1).and_then(|field| field.split(':').next());
            let Some(number) = local.and_then(|hexa| u32::from_str_radix(hexa, 16).ok()) else { continue };
            // The kernel prints the address as the machine holds it.
            let [a, b, c, _] = number.to_ne_bytes();
            if a == 127 {
                taken.insert([b, c]);
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_labs_drawn_side_by_side_do_not_share_an_address() {
        let draw = |name: &str| draw(PathBuf::from(name), PathBuf::new(), PathBuf::new(), None).unwrap();
        let one = draw("/tmp/one");
        let _bound = TcpListener::bind((one.regions["east"].address, 0)).unwrap();
        let same_again = draw("/tmp/one");
        assert_ne!(one.outside.address, same_again.outside.address, "a subnet in use was given out again");
        assert_eq!(one.regions["east"].inference, one.regions["west"].inference);
    }

    #[test]
    fn what_a_lab_listens_on_is_given_to_no_client_meanwhile() {
        let plan = draw(PathBuf::from("/tmp/one"), PathBuf::new(), PathBuf::new(), None).unwrap();
        let (east, west, outside) = (&plan.regions["east"], &plan.regions["west"], &plan.outside);
        let regions = [east, west].into_iter().flat_map(|r| [r.postgres, r.s3, r.rds]);
        let all: Vec<u16> = regions.chain([east.inference, outside.dns, outside.resolver, outside.route53, outside.lease]).collect();
        let given_away = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let lowest: u16 = given_away.split_whitespace().next().unwrap().parse().unwrap();
        assert!(lowest < Ports::FIRST + 1_000 || all.iter().all(|port| (Ports::FIRST..lowest).contains(port)), "{all:?} {given_away}");
        assert_eq!(BTreeSet::from_iter(&all).len(), all.len(), "one was given twice: {all:?}");
        let from_here = || Ports::after((east.postgres - Ports::FIRST).wrapping_sub(1)).tcp(&[east.address]).unwrap();
        assert_eq!(from_here(), east.postgres);
        let _bound = TcpListener::bind((east.address, east.postgres)).unwrap();
        assert_ne!(from_here(), east.postgres, "what somebody listens on was given out");
    }

    #[test]
    fn a_home_is_stable_and_differs_by_state() {
        assert_eq!(home_for(Path::new("/a")), home_for(Path::new("/a")));
        assert_ne!(home_for(Path::new("/a")), home_for(Path::new("/b")));
    }
}
