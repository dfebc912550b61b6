//! Starting a lab and taking it away. `up` first removes what a crashed one left; what it starts is on
//! record before it is started; `down` needs no record at all, since processes are found by where they stand.

use super::{
    Lab,
    checker::{Served, served_file},
    error::{LabError, LabResult, What},
    estate::estate_yaml,
    folder_of, inference,
    instances::{Instance, RegionState},
    lease::Kept as KeptLease,
    model::{GOLDEN, GOLDEN_KEY, ONNX, ONNX_KEY},
    pg::{self, Upstream, remove_interlock},
    plan::{
        self, Knobs, LEASE, LEASE_TTL_MS, LabPlan, NAME, OUTSIDE, RECORD_TTL_S, REGIONS, Servers, ZONE, bucket_of, instance_of, write_json,
        write_secret,
    },
    process,
    rds_work::make_replica,
    record_of,
    route53::Kept as KeptZone,
    sdk,
    zone::{Record, Zone},
};
use crate::providers::clock::{Clock, SystemClock};
use secrecy::SecretString;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What stands in no region. The API of Route 53 is apart from the servers, so that it can be lost alone.
pub(super) const OUTSIDE_ROLES: [&str; 4] = ["dns", "route53", "resolver", "lease"];

const READY_LIMIT: Duration = Duration::from_secs(30);

/// How a lab is started.
pub struct Options<'a> {
    /// The `muster` to run the processes from; this one when left out.
    pub exe: Option<PathBuf>,
    pub dns_delay_ms: u64,
    pub servers: Servers,
    /// Told what is being done, for people.
    pub progress: &'a (dyn Fn(&str) + Send + Sync),
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { exe: None, dns_delay_ms: 50, servers: Servers::default(), progress: &|_| {} }
    }
}

impl Lab {
    /// Starts a lab for this state directory, in place of any that is there.
    /// # Errors
    /// When something is missing or does not start; nothing is left behind then.
    pub async fn up(state: &Path, options: Options<'_>) -> LabResult<Self> {
        fs::create_dir_all(state).what(state.display().to_string())?;
        let state = state.canonicalize().what(state.display().to_string())?;
        if Self::down(&state).await? {
            (options.progress)("removed what an earlier lab had left");
        }
        let pg_bin = pg::find_programs()?;
        let exe = match options.exe.clone() {
            Some(exe) => exe,
            None => std::env::current_exe().what("this program's own path")?,
        };
        let drawn = plan::draw(plan::home_for(&state), exe, pg_bin, pg::run_as())?;
        let plan = LabPlan { servers: options.servers, ..drawn };
        let started = Self::start(&state, plan, &options).await;
        if started.is_err() {
            let _ = Self::down(&state).await;
        }
        started
    }

    async fn start(state: &Path, plan: LabPlan, options: &Options<'_>) -> LabResult<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        lay_out(state, &plan, options, &*clock)?;
        let mut lab = Self::with_plan(state, plan, clock)?;
        (options.progress)("starting object stores, DNS, resolver, lease authority, databases");
        for role in OUTSIDE_ROLES {
            process::spawn(&lab.plan, OUTSIDE, role)?;
        }
        for region in REGIONS {
            process::spawn(&lab.plan, region, "s3")?;
        }
        tokio::try_join!(lab.start_databases(options), lab.start_inference(options), lab.outside_ready())?;
        for region in REGIONS {
            lab.ready(region, "inference").await?;
            lab.healthy(region).await?;
        }
        let estate = lab.estate_path();
        fs::write(&estate, estate_yaml(&lab.plan)).what(estate.display().to_string())?;
        let plan = LabPlan { complete: true, ..(*lab.plan).clone() };
        write_json(&plan.home.join("lab.json"), &plan)?;
        write_json(&record_of(state), &plan)?;
        lab.plan = Arc::new(plan);
        (options.progress)("the lab is up");
        Ok(lab)
    }

    /// The primary in the east, its standby in the west, and the APIs in front of them if they are Amazon's.
    async fn start_databases(&self, options: &Options<'_>) -> LabResult<()> {
        let (east, west) = (self.plan.region("east")?, self.plan.region("west")?);
        let primary = self.postgres.server("east", &instance_of("east"), east.address, east.postgres);
        let standby = self.postgres.server("west", &instance_of("west"), west.address, west.postgres);
        self.postgres.init(&primary).await?;
        self.postgres.start(&primary, READY_LIMIT).await?;
        inference::make_table(&self.postgres, &primary).await?;
        (options.progress)("the primary is up in the east; copying it to the west");
        let upstream = Upstream { address: east.address, port: east.postgres };
        make_replica(&self.postgres, &standby, &upstream).await?;
        if self.plan.servers == Servers::Own {
            return self.streaming(&upstream).await;
        }
        for (region, source) in [("east", None), ("west", Some(east.arn(&instance_of("east"))))] {
            let mut instance = Instance::new(&instance_of(region), self.plan.region(region)?.postgres, source, &*self.clock);
            "available".clone_into(&mut instance.status);
            let state = RegionState { instances: BTreeMap::from([(instance.id.clone(), instance)]), snapshots: BTreeMap::new() };
            write_json(&self.plan.rds_file(region), &state)?;
            process::spawn(&self.plan, region, "rds")?;
        }
        self.streaming(&upstream).await?;
        tokio::try_join!(self.ready("east", "rds"), self.ready("west", "rds"))?;
        Ok(())
    }

    async fn start_inference(&self, options: &Options<'_>) -> LabResult<()> {
        for region in REGIONS {
            self.ready(region, "s3").await?;
            self.upload(region).await?;
            process::spawn(&self.plan, region, "inference")?;
        }
        (options.progress)("the model is in both buckets");
        Ok(())
    }

    async fn upload(&self, region: &str) -> LabResult<()> {
        let client = sdk::s3(&self.plan, region)?;
        let fail = |cause: String| LabError::Objects { region: region.to_owned(), cause };
        let bucket = bucket_of(region);
        let work = async {
            client.create_bucket().bucket(&bucket).send().await.map_err(|e| fail(sdk::say(&e)))?;
            for (key, body) in [(ONNX_KEY, ONNX), (GOLDEN_KEY, GOLDEN)] {
                let put = client.put_object().bucket(&bucket).key(key).body(body.to_vec().into());
                put.send().await.map_err(|e| fail(sdk::say(&e)))?;
            }
            Ok(())
        };
        tokio::time::timeout(READY_LIMIT, work).await.map_err(|_| fail("no answer in time".to_owned()))?
    }

    async fn outside_ready(&self) -> LabResult<()> {
        for role in OUTSIDE_ROLES {
            self.ready(OUTSIDE, role).await?;
        }
        Ok(())
    }

    /// Waits until the role accepts connections.
    pub(super) async fn ready(&self, place: &str, role: &str) -> LabResult<()> {
        let at = self.address(place, role)?;
        let end = self.clock.monotonic() + READY_LIMIT;
        while self.clock.monotonic() < end {
            let link = tokio::time::timeout(Duration::from_millis(500), tokio::net::TcpStream::connect(at)).await;
            if matches!(link, Ok(Ok(_))) {
                return Ok(());
            }
            self.clock.sleep(Duration::from_millis(15)).await;
        }
        Err(self.not_ready(place, role))
    }

    fn not_ready(&self, place: &str, role: &str) -> LabError {
        let log = self.plan.log(place, role);
        let output = process::tail(&log);
        LabError::NotReady { role: role.to_owned(), place: place.to_owned(), seconds: READY_LIMIT.as_secs(), log, output }
    }

    /// Where a role listens.
    pub(super) fn address(&self, place: &str, role: &str) -> LabResult<SocketAddr> {
        let outside = &self.plan.outside;
        Ok(match role {
            "dns" => outside.at(outside.dns),
            "route53" => outside.at(outside.route53),
            "resolver" => outside.at(outside.resolver),
            "lease" => outside.at(outside.lease),
            _ => {
                let region = self.plan.region(place)?;
                region.at(match role {
                    "s3" => region.s3,
                    "rds" => region.rds,
                    "inference" => region.inference,
                    _ => region.postgres,
                })
            }
        })
    }

    /// Waits until the region's inference server has its model.
    pub(super) async fn healthy(&self, region: &str) -> LabResult<()> {
        let url = format!("http://{}/healthz", self.address(region, "inference")?);
        let client = reqwest::Client::new();
        let end = self.clock.monotonic() + READY_LIMIT;
        while self.clock.monotonic() < end {
            let answer = client.get(&url).timeout(Duration::from_millis(500)).send().await;
            if answer.is_ok_and(|a| a.status().is_success()) {
                return Ok(());
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
        Err(self.not_ready(region, "inference"))
    }

    async fn streaming(&self, primary: &Upstream) -> LabResult<()> {
        // Divides by zero, and so fails, until a standby streams.
        const ASK: &str = "select 1 / count(*) from pg_stat_replication where state = 'streaming'";
        let end = self.clock.monotonic() + READY_LIMIT;
        while self.clock.monotonic() < end {
            if self.postgres.execute(primary.address, primary.port, ASK, None, Duration::from_secs(2)).await.is_ok() {
                return Ok(());
            }
            self.clock.sleep(Duration::from_millis(25)).await;
        }
        Err(self.not_ready("west", &format!("postgres:{}", instance_of("west"))))
    }

    /// Ends every process of the state directory's lab and removes its files. False when there was nothing.
    /// # Errors
    /// When a process does not end, or a file cannot be removed.
    pub async fn down(state: &Path) -> LabResult<bool> {
        let clock = SystemClock::new();
        let state = state.canonicalize().unwrap_or_else(|_| state.to_owned());
        let mut homes = vec![plan::home_for(&state)];
        // The record may name another home, if TMPDIR was another.
        if let Ok(plan) = LabPlan::load(&record_of(&state)) {
            let ours = plan.home.file_name() == homes.first().and_then(|h| h.file_name());
            homes.extend((ours && !homes.contains(&plan.home)).then_some(plan.home));
        }
        let folder = folder_of(&state);
        let mut found = folder.join("lab.json").exists();
        for home in homes {
            process::stop_all(&home);
            let (files, segments) = process::shared_memory(&home);
            found |= process::kill_all(&home, &clock).await? > 0;
            for file in files {
                let _ = fs::remove_file(file);
            }
            for segment in segments {
                pg::remove_segment(&segment).await;
            }
            if home.exists() {
                found = true;
                remove_interlocks(&home).await;
                fs::remove_dir_all(&home).what(home.display().to_string())?;
            }
        }
        if found && folder.exists() {
            fs::remove_dir_all(&folder).what(folder.display().to_string())?;
        }
        Ok(found)
    }
}

async fn remove_interlocks(home: &Path) {
    for region in REGIONS {
        for kind in ["pg", "snapshots"] {
            for entry in fs::read_dir(home.join(region).join(kind)).into_iter().flatten().filter_map(Result::ok) {
                remove_interlock(&entry.path()).await;
            }
        }
    }
}

/// Directories, keys and first states; the plan before all, so that a crash from here on can be cleaned up.
fn lay_out(state: &Path, plan: &LabPlan, options: &Options<'_>, clock: &dyn Clock) -> LabResult<()> {
    let folder = folder_of(state);
    fs::create_dir_all(&folder).what(folder.display().to_string())?;
    write_json(&record_of(state), plan)?;
    // Not `create_dir_all`: that somebody else has made it already must be an error.
    fs::create_dir(&plan.home).what(plan.home.display().to_string())?;
    let mode = |path: &Path, bits| fs::set_permissions(path, fs::Permissions::from_mode(bits)).what(path.display().to_string());
    // PostgreSQL's user must be able to pass through, when it is not ours.
    let open = if plan.run_as.is_some() { 0o755 } else { 0o700 };
    mode(&plan.home, open)?;
    for place in [OUTSIDE].iter().chain(&REGIONS) {
        for part in ["", "log", "pg", "s3", "snapshots"] {
            let dir = plan.dir(place).join(part);
            if *place != OUTSIDE || matches!(part, "" | "log") {
                fs::create_dir_all(&dir).what(dir.display().to_string())?;
                mode(&dir, open)?;
                // A server of one's own keeps things beside its directory.
                if part == "pg"
                    && let Some((uid, gid)) = plan.run_as
                {
                    std::os::unix::fs::chown(&dir, Some(uid), Some(gid)).what(dir.display().to_string())?;
                }
            }
        }
    }
    let secrets = plan.home.join("secrets");
    fs::create_dir(&secrets).what(secrets.display().to_string())?;
    mode(&secrets, 0o700)?;
    let random = || clock.new_id().replace('-', "");
    for (name, value) in [
        ("access_key_id", format!("LAB{}", random().get(14..30).unwrap_or_default().to_uppercase())),
        ("secret_access_key", random()),
        ("database_password", random()),
        ("repository_password", random()),
    ] {
        write_secret(&plan.secret_file(name), &SecretString::from(value))?;
    }
    write_json(&plan.home.join("knobs.json"), &Knobs { dns_delay_ms: options.dns_delay_ms, predict_delay_ms: BTreeMap::new() })?;
    let lease = KeptLease { epoch: 1, allowed: Some("east".to_owned()), holder: None, ttl_ms: LEASE_TTL_MS };
    write_json(&plan.dir(OUTSIDE).join("lease.json"), &BTreeMap::from([(LEASE, lease)]))?;
    let first = Record {
        name: NAME.to_owned(),
        kind: "A".to_owned(),
        ttl: RECORD_TTL_S,
        values: vec![plan.region("east")?.address.to_string()],
        ..Record::default()
    };
    let zone = Zone { apex: ZONE.to_owned(), records: vec![first] };
    write_json(&served_file(plan), &Served { zone: zone.clone(), ..Served::default() })?;
    write_json(&plan.dir(OUTSIDE).join("zone.json"), &KeptZone { zone, ..KeptZone::default() })?;
    write_json(&plan.home.join("lab.json"), plan)
}
