//! Clients that write at a steady rate and keep account of what was acknowledged to them, what failed, and how long
//! nothing was acknowledged.

use crate::pg_yard::session;
use sqlx::Executor;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

/// Where a client connects: the first that lets it write is taken.
#[derive(Clone)]
pub struct Route {
    pub ports: Vec<u16>,
    pub database: &'static str,
}

pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
    account: Arc<Mutex<Account>>,
    begun: Instant,
}

#[derive(Default, Clone)]
pub struct Account {
    pub acknowledged: Vec<i64>,
    /// What was told to clients that failed; each was tried again with the same row.
    pub failed: Vec<String>,
    /// When each acknowledgement came.
    at: Vec<Duration>,
}

impl Account {
    /// The longest time in which nothing was acknowledged.
    pub fn longest_gap(&self) -> Duration {
        self.at.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
    }
}

impl Load {
    /// `clients` clients, each a write every `every`.
    pub fn start(route: &Route, clients: u32, every: Duration) -> Self {
        static NEXT: AtomicI64 = AtomicI64::new(1);
        let (stop, account) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Account::default())));
        let begun = Instant::now();
        let clients = (0..clients)
            .map(|_| {
                let (route, stop, account) = (route.clone(), stop.clone(), account.clone());
                tokio::spawn(async move {
                    let mut tick = tokio::time::interval(every);
                    let mut link = None;
                    while !stop.load(Ordering::SeqCst) {
                        tick.tick().await;
                        let id = NEXT.fetch_add(1, Ordering::SeqCst);
                        write(&route, &mut link, id, &stop, &account, begun).await;
                    }
                })
            })
            .collect();
        Self { stop, clients, account, begun }
    }

    pub fn acknowledged(&self) -> usize {
        self.account.lock().unwrap().acknowledged.len()
    }

    /// Waits until writes are acknowledged again.
    pub async fn flows(&self) {
        let before = self.acknowledged();
        while self.acknowledged() < before + 20 {
            assert!(self.begun.elapsed() < Duration::from_secs(300), "nothing is acknowledged any more");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn end(self) -> Account {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.unwrap();
        }
        self.account.lock().unwrap().clone()
    }
}

/// One row, until it is acknowledged. That it may be there already, from an attempt that was never answered, is no error.
async fn write(route: &Route, link: &mut Option<sqlx::PgConnection>, id: i64, stop: &AtomicBool, account: &Mutex<Account>, begun: Instant) {
    let text = format!("INSERT INTO writes (id) VALUES ({id}) ON CONFLICT DO NOTHING");
    loop {
        let failed = match link {
            Some(session) => {
                match tokio::time::timeout(Duration::from_secs(20), session.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(text.clone())))).await
                {
                    Ok(Ok(_)) => {
                        let mut account = account.lock().unwrap();
                        account.acknowledged.push(id);
                        account.at.push(begun.elapsed());
                        return;
                    }
                    Ok(Err(e)) => e.to_string(),
                    Err(_) => "no answer within 20 s".to_owned(),
                }
            }
            None => String::new(),
        };
        if !failed.is_empty() {
            account.lock().unwrap().failed.push(failed);
        }
        *link = None;
        for port in &route.ports {
            if let Ok(mut fresh) = session(*port, "app", route.database).await
                && (route.ports.len() == 1 || fresh.execute("SET ROLE app; CREATE TEMP TABLE IF NOT EXISTS here (x int)").await.is_ok())
            {
                *link = Some(fresh);
                break;
            }
        }
        if link.is_none() {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// How many of these are not in the table, as this server has it.
pub fn missing(cluster: &crate::pg::Cluster, ids: &[i64]) -> Vec<i64> {
    let present: std::collections::HashSet<i64> =
        cluster.sql("SELECT id FROM writes").lines().map(|line| line.trim().parse().unwrap()).collect();
    ids.iter().copied().filter(|id| !present.contains(id)).collect()
}
