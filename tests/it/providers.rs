//! S3, HTTP, leases and resolvers against small real servers in this process.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use futures::{StreamExt, TryStreamExt};
use muster::{
    model::estate::Estate,
    providers::{
        clock::{Clock, SystemClock},
        http::HttpClient,
        lease::HttpLease,
        port::*,
        resolver::DnsResolver,
        world::World,
    },
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::net::{TcpListener, UdpSocket};

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn get_request(url: String) -> HttpRequest {
    HttpRequest { method: "GET".into(), url, ..HttpRequest::default() }
}

// ---------------------------------------------------------------- S3

async fn s3(dir: &std::path::Path) -> SocketAddr {
    use hyper_util::{rt::TokioIo, server::conn::auto};
    let fs = s3s_fs::FileSystem::new(dir).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(fs);
    builder.set_auth(s3s::auth::SimpleAuth::from_single("test", "testtest"));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server = auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    address
}

fn s3_world(address: SocketAddr, dir: &std::path::Path) -> World {
    let key = |name: &str, value: &str| {
        let path = dir.join(name);
        std::fs::write(&path, format!("{value}\n")).unwrap();
        json!({ "file": path })
    };
    let aws = json!({ "region": "us-east-1", "endpoints": { "s3": format!("http://{address}") },
        "credentials": { "access_key_id": key("id", "test"), "secret_access_key": key("secret", "testtest") } });
    let wrong = json!({ "region": "us-east-1", "endpoints": { "s3": format!("http://{address}") },
        "credentials": { "access_key_id": key("id2", "test"), "secret_access_key": key("secret2", "wrong") } });
    let down = json!({ "region": "us-east-1", "endpoints": { "s3": "http://127.0.0.1:1" },
        "credentials": { "access_key_id": key("id3", "test"), "secret_access_key": key("secret3", "testtest") } });
    let estate: Estate = serde_json::from_value(json!({
        "regions": { "east": { "aws": aws }, "wrong": { "aws": wrong }, "down": { "aws": down } },
        "buckets": { "models": { "east": { "bucket": "models" }, "wrong": { "bucket": "models" }, "down": { "bucket": "models" } },
                     "inner": { "east": { "bucket": "models", "prefix": "in/" } }, "gone": { "east": { "bucket": "gone" } } },
    }))
    .unwrap();
    World::new(Arc::new(estate), Arc::new(SystemClock::new()))
}

async fn all_of(bucket: &dyn ObjectWrite, prefix: &str) -> (Vec<String>, usize) {
    let (mut keys, mut pages, mut after) = (Vec::new(), 0, None);
    loop {
        let page = bucket.list(prefix, after.as_deref()).await.unwrap();
        keys.extend(page.objects.into_iter().map(|o| o.key));
        pages += 1;
        after = page.next;
        if after.is_none() {
            return (keys, pages);
        }
    }
}

#[tokio::test]
async fn objects_are_written_once_read_whole_and_listed_in_order() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(dir.path().join("models")).unwrap();
    let world = s3_world(s3(dir.path()).await, secrets.path());
    let bucket = world.objects_mut("models", "east").unwrap();
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let metadata = BTreeMap::from([("muster-sha256".to_owned(), "abc".to_owned())]);
    let put = bucket.put("in/model.onnx", body.clone().into(), &metadata, true).await.unwrap();
    assert_eq!(put.size, 3_000_000);

    let head = bucket.head("in/model.onnx").await.unwrap().unwrap();
    assert_eq!((head.size, &head.metadata, &head.etag), (3_000_000, &metadata, &put.etag));
    assert!(head.etag.is_some_and(|e| !e.contains('"')) && head.modified.is_some());
    assert!(bucket.head("in/none").await.unwrap().is_none());
    let got = bucket.get("in/model.onnx").await.unwrap();
    assert_eq!(got.meta.metadata, metadata);
    let chunks: Vec<Vec<u8>> = got.chunks.try_collect().await.unwrap();
    assert!(chunks.len() > 1 && chunks.concat() == body, "streamed, and bit for bit");
    assert!(matches!(bucket.get("in/none").await, Err(PortError::NotFound(_))));

    // Conditional: the second is told what is there, and changes nothing.
    let again = bucket.put("in/model.onnx", b"other".to_vec().into(), &metadata, true).await;
    assert!(matches!(&again, Err(PortError::Conflict { found }) if found.contains("3000000 bytes")), "{again:?}");
    assert_eq!(bucket.head("in/model.onnx").await.unwrap().unwrap().size, 3_000_000);
    bucket.put("in/model.onnx", b"other".to_vec().into(), &metadata, false).await.unwrap();
    assert_eq!(bucket.head("in/model.onnx").await.unwrap().unwrap().size, 5);

    // A prefix of the estate's is not seen.
    let inner = world.objects_mut("inner", "east").unwrap();
    inner.put("b", Vec::new().into(), &BTreeMap::new(), false).await.unwrap();
    assert_eq!(all_of(&*inner, "").await.0, ["b", "model.onnx"]);
    assert_eq!(all_of(&*bucket, "in/m").await.0, ["in/model.onnx"]);
    // This server's listings have no etags; ours have, since a stale copy is told by them.
    let listed = bucket.list("in/m", None).await.unwrap().objects;
    let etag = bucket.head("in/model.onnx").await.unwrap().unwrap().etag;
    assert!(etag.is_some() && listed.iter().all(|object| object.etag == etag), "{listed:?}");
    bucket.delete("in/b").await.unwrap();
    bucket.delete("in/b").await.unwrap();
    assert_eq!(all_of(&*inner, "").await.0, ["model.onnx"]);
}

#[tokio::test]
async fn listings_go_on_over_pages() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let many = dir.path().join("models").join("many");
    std::fs::create_dir_all(&many).unwrap();
    for n in 0..1_500 {
        std::fs::write(many.join(format!("{n:05}")), b"x").unwrap();
    }
    let world = s3_world(s3(dir.path()).await, secrets.path());
    let (keys, pages) = all_of(&*world.objects_mut("models", "east").unwrap(), "many/").await;
    assert!(pages > 1 && keys.is_sorted(), "{pages} pages");
    let want: Vec<String> = (0..1_500).map(|n| format!("many/{n:05}")).collect();
    assert_eq!(keys, want);
}

#[tokio::test]
async fn errors_of_s3_say_whether_anything_may_have_happened() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(dir.path().join("models")).unwrap();
    let world = s3_world(s3(dir.path()).await, secrets.path());
    let put = async |bucket: &str, region: &str| {
        world.objects_mut(bucket, region).unwrap().put("k", b"v".to_vec().into(), &BTreeMap::new(), false).await.unwrap_err()
    };
    let error = put("models", "wrong").await;
    assert!(matches!(&error, PortError::Refused(m) if m.contains("SignatureDoesNotMatch")), "{error:?}");
    let error = put("models", "down").await;
    assert!(matches!(&error, PortError::Unreachable(_)), "nothing listens, so certainly not written: {error:?}");
    let error = world.objects("gone", "east").unwrap().list("", None).await.map(|_| ()).unwrap_err();
    assert!(matches!(&error, PortError::NotFound(m) if m.contains("NoSuchBucket")), "{error:?}");
    assert!(matches!(world.objects("models", "down").unwrap().list("", None).await, Err(PortError::Unreachable(_))));

    // A server that takes the call and never answers, or breaks off.
    let broken = Router::new().fallback(async || (StatusCode::INTERNAL_SERVER_ERROR, "oops"));
    let world = s3_world(serve(broken).await, secrets.path());
    let bucket = world.objects_mut("models", "east").unwrap();
    assert!(matches!(bucket.put("k", b"v".to_vec().into(), &BTreeMap::new(), false).await, Err(PortError::Unknown(_))));
    assert!(matches!(bucket.head("k").await, Err(PortError::Unreachable(_))));
    let hangs_up = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hangs_up.local_addr().unwrap();
    let calls = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = hangs_up.accept().await {
            *counted.lock().unwrap() += 1;
            let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut [0; 4096]).await;
        }
    });
    let bucket = s3_world(address, secrets.path()).objects_mut("models", "east").unwrap();
    let answer = bucket.put("k", b"v".to_vec().into(), &BTreeMap::new(), false).await;
    assert!(matches!(answer, Err(PortError::Unknown(_))), "{answer:?}");
    assert_eq!(*calls.lock().unwrap(), 1, "a write is never repeated behind the journal's back");
}

// ---------------------------------------------------------------- HTTP

#[tokio::test]
async fn http_connects_where_it_is_told_and_bounds_what_it_reads() {
    let router = Router::new()
        .route("/who", get(async |headers: HeaderMap| headers["host"].to_str().unwrap().to_owned()))
        .route("/big", get(async || vec![b'x'; 3 << 20]))
        .route("/away", get(async || (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")], "")))
        .route("/slow", get(slow).post(slow));
    let address = serve(router).await;
    let http = HttpClient::new();
    for (url, host) in [
        ("http://api.scoring.test/who", "api.scoring.test"),
        ("http://api.scoring.test:8080/who", "api.scoring.test:8080"),
        ("http://192.0.2.1:81/who", "192.0.2.1:81"),
    ] {
        let answer = http.send(HttpRequest { connect_to: Some(address), ..get_request(url.into()) }).await.unwrap();
        assert_eq!((answer.status, String::from_utf8(answer.body).unwrap().as_str()), (200, host));
    }
    let big = http.send(get_request(format!("http://{address}/big"))).await.unwrap();
    assert_eq!(big.body.len(), 1 << 20);
    let away = http.send(get_request(format!("http://{address}/away"))).await.unwrap();
    assert_eq!((away.status, away.headers["location"].as_str()), (302, "http://127.0.0.1:1/"));

    let slow = HttpRequest { timeout: Some(Duration::from_millis(200)), ..get_request(format!("http://u:pw@{address}/slow?token=t")) };
    let error = http.send(slow.clone()).await.unwrap_err();
    assert!(matches!(&error, PortError::Unreachable(m) if m.contains("in time") && !m.contains("pw") && !m.contains("token")), "{error}");
    let error = http.send(HttpRequest { method: "POST".into(), ..slow }).await.unwrap_err();
    assert!(matches!(error, PortError::Unknown(_)), "a POST without an answer may have been carried out");
    let refused = http.send(HttpRequest { method: "POST".into(), ..get_request("http://127.0.0.1:1/".into()) }).await;
    assert!(matches!(refused, Err(PortError::Unreachable(_))));
    for wrong in ["nonsense", "ftp://x/", "http://"] {
        assert!(matches!(http.send(get_request(wrong.into())).await, Err(PortError::Config(_))), "{wrong}");
    }
}

async fn slow() {
    SystemClock::new().sleep(Duration::from_secs(3)).await;
}

// ---------------------------------------------------------------- leases

type Shared = Arc<Mutex<(u64, Option<String>)>>;

fn lease_json(name: &str, state: &(u64, Option<String>)) -> Json<Value> {
    Json(json!({ "name": name, "epoch": state.0, "allowed": state.1, "holder": null, "ttl_ms": 1000, "remaining_ms": 0,
                 "expired_at": "2026-01-01T00:00:00Z", "now": "2026-01-01T00:00:01Z" }))
}

async fn allow(Path(name): Path<String>, State(state): State<Shared>, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    let mut state = state.lock().unwrap();
    let agrees = body["expect_epoch"] == state.0;
    if agrees {
        *state = (state.0 + 1, body["region"].as_str().map(str::to_owned));
    }
    (if agrees { StatusCode::OK } else { StatusCode::CONFLICT }, lease_json(&name, &state))
}

#[tokio::test]
async fn a_lease_is_moved_by_compare_and_swap() {
    let state: Shared = Arc::new(Mutex::new((3, Some("east".into()))));
    let router = Router::new()
        .route("/dr/leases/{name}", get(async |Path(name): Path<String>, State(s): State<Shared>| lease_json(&name, &s.lock().unwrap())))
        .route("/dr/leases/{name}/allow", post(allow))
        .with_state(Arc::clone(&state));
    let base: url::Url = format!("http://{}/dr", serve(router).await).parse().unwrap();
    let lease = HttpLease::new(Arc::new(HttpClient::new()), base.clone(), "a b/c".into());
    let seen = lease.lease().await.unwrap();
    assert_eq!((seen.name.as_str(), seen.epoch, seen.allowed.as_deref()), ("a b/c", 3, Some("east")));
    let moved = lease.allow(None, 3).await.unwrap();
    assert_eq!((moved.epoch, moved.allowed), (4, None));
    let late = lease.allow(Some("west"), 3).await.unwrap_err();
    assert!(matches!(late, PortError::Conflict { found } if found.contains("epoch 4") && found.contains("nobody")));
    assert_eq!(lease.allow(Some("west"), 4).await.unwrap().allowed.as_deref(), Some("west"));

    let elsewhere = HttpLease::new(Arc::new(HttpClient::new()), base.join("/other").unwrap(), "x".into());
    assert!(matches!(elsewhere.lease().await, Err(PortError::NotFound(_))));
    let failing = serve(Router::new().fallback(async || StatusCode::BAD_GATEWAY)).await;
    let failing = HttpLease::new(Arc::new(HttpClient::new()), format!("http://{failing}").parse().unwrap(), "x".into());
    assert!(matches!(failing.lease().await, Err(PortError::Unreachable(_))));
    assert!(matches!(failing.allow(None, 1).await, Err(PortError::Unknown(_))));
}

// ---------------------------------------------------------------- resolvers

/// Answers A queries of one name by hand-made packets, and counts them.
async fn dns(address: Ipv4Addr, ttl: u32) -> (SocketAddr, Arc<Mutex<u32>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut packet = [0u8; 512];
        while let Ok((_, from)) = socket.recv_from(&mut packet).await {
            let name_end = 12 + packet[12..].iter().position(|b| *b == 0).unwrap() + 1;
            let question = &packet[12..name_end + 4];
            let known = question.to_ascii_lowercase().starts_with(b"\x03api\x07scoring\x04test\x00");
            let is_a = question[question.len() - 4..] == [0, 1, 0, 1];
            let mut answer = packet[..2].to_vec();
            answer.extend([0x85, if known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(known && is_a), 0, 0, 0, 0]);
            answer.extend(question);
            if known && is_a {
                *count.lock().unwrap() += 1;
                answer.extend([0xc0, 12, 0, 1, 0, 1]);
                answer.extend(ttl.to_be_bytes());
                answer.extend([0, 4]);
                answer.extend(address.octets());
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    (at, asked)
}

#[tokio::test]
async fn a_resolver_is_asked_anew_each_time() {
    let (server, asked) = dns(Ipv4Addr::new(127, 9, 8, 7), 5).await;
    for _ in 0..3 {
        let answer = DnsResolver.ask(Some(server), "api.scoring.test").await.unwrap();
        assert_eq!(answer, DnsAnswer { addresses: vec![IpAddr::from([127, 9, 8, 7])], ttl_s: 5 });
    }
    assert_eq!(*asked.lock().unwrap(), 3);
    assert!(matches!(DnsResolver.ask(Some(server), "other.scoring.test.").await, Err(PortError::NotFound(_))));
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let clock = SystemClock::new();
    let answer = DnsResolver.ask(Some(silent.local_addr().unwrap()), "api.scoring.test").await;
    assert!(matches!(answer, Err(PortError::Unreachable(_))) && clock.monotonic() < Duration::from_secs(2), "{answer:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_not_an_end() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(dir.path().join("models")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut [0; 4096]).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        }
    });
    let bucket = s3_world(address, secrets.path()).objects("models", "east").unwrap();
    let chunks: Vec<PortResult<Vec<u8>>> = bucket.get("k").await.unwrap().chunks.collect().await;
    assert!(matches!(chunks.last(), Some(Err(PortError::Unreachable(_)))), "{chunks:?}");
}
