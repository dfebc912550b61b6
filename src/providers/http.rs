//! HTTP/1.1 and TLS through reqwest, shaped for probes: redirects are answers, not followed; the body
//! is cut at 1 MiB; and a request may be sent to one address whatever its URL's name leads to, so that
//! a region can be asked while DNS points to the other.

use super::port::{Http, HttpRequest, HttpResponse, PortError, PortResult};
use async_trait::async_trait;
use reqwest::{Method, header};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use url::{Host, Url};

const LARGEST_BODY: usize = 1024 * 1024;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Far more pairs of name and address than an estate has; a bound, so that nothing grows for ever.
const MOST_CLIENTS: usize = 64;

/// Which client a request takes: reqwest binds addresses to names, and proxies, per client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Route {
    /// As the environment says, through a proxy if it names one.
    Usual,
    /// To this very machine, never through a proxy.
    Direct,
    /// The name leads here.
    Pinned(String, SocketAddr),
}

/// Keeps connections alive between requests.
#[derive(Default)]
pub struct HttpClient {
    clients: Mutex<HashMap<Route, reqwest::Client>>,
}

impl HttpClient {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn client(&self, route: &Route) -> PortResult<reqwest::Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(route) {
            return Ok(client.clone());
        }
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        let client = build(route)?;
        clients.insert(route.clone(), client.clone());
        Ok(client)
    }
}

fn build(route: &Route) -> PortResult<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")));
    match route {
        Route::Usual => {}
        Route::Direct => builder = builder.no_proxy(),
        Route::Pinned(name, address) => builder = builder.no_proxy().resolve(name, *address),
    }
    builder.build().map_err(|e| PortError::Config(format!("the HTTP client cannot be built: {}", chain(&e))))
}

/// Where the request goes on the wire: the URL to connect to, the `Host` to name, and the client.
fn route(request: &HttpRequest) -> PortResult<(Url, Option<String>, Route)> {
    let mut url: Url = request.url.parse().map_err(|e| PortError::Config(format!("`{}` is not a URL: {e}", request.url)))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(PortError::Config(format!("`{}` is not an http or https URL", request.url)));
    }
    let Some(host) = url.host().map(|h| h.to_owned()) else {
        return Err(PortError::Config(format!("`{}` names no host", request.url)));
    };
    let Some(address) = request.connect_to else {
        let local = match &host {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(ip) => ip.is_loopback(),
            Host::Ipv6(ip) => ip.is_loopback(),
        };
        return Ok((url, None, if local { Route::Direct } else { Route::Usual }));
    };
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_string(),
    };
    let wrong = |()| PortError::Config(format!("`{}` cannot be sent to {address}", request.url));
    url.set_port(Some(address.port())).map_err(wrong)?;
    let route = match host {
        Host::Domain(name) => Route::Pinned(name, address),
        // An address in the URL is not looked up, so it is replaced.
        Host::Ipv4(_) | Host::Ipv6(_) => {
            url.set_ip_host(address.ip()).map_err(wrong)?;
            Route::Direct
        }
    };
    Ok((url, Some(authority), route))
}

#[async_trait]
impl Http for HttpClient {
    async fn send(&self, request: HttpRequest) -> PortResult<HttpResponse> {
        let (url, host, route) = route(&request)?;
        let method = if request.method.is_empty() { "GET" } else { &request.method };
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| PortError::Config(format!("`{method}` is not an HTTP method")))?;
        let reads = method.is_safe();
        let mut call = self.client(&route)?.request(method, url).timeout(request.timeout.unwrap_or(DEFAULT_TIMEOUT));
        if let Some(host) = host {
            call = call.header(header::HOST, host);
        }
        for (name, value) in &request.headers {
            call = call.header(name, value);
        }
        if let Some(body) = request.body {
            call = call.body(body);
        }
        let response = call.send().await.map_err(|e| explain(&e, &request.url, reads))?;
        let status = response.status().as_u16();
        let headers = headers(&response);
        let body = body(response).await.map_err(|e| explain(&e, &request.url, reads))?;
        Ok(HttpResponse { status, headers, body })
    }
}

fn headers(response: &reqwest::Response) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in response.headers() {
        let value = String::from_utf8_lossy(value.as_bytes());
        all.entry(name.as_str().to_owned()).and_modify(|v| *v = format!("{v}, {value}")).or_insert_with(|| value.into_owned());
    }
    all
}

async fn body(mut response: reqwest::Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = LARGEST_BODY - body.len();
        body.extend(chunk.iter().take(room));
        if body.len() >= LARGEST_BODY {
            break;
        }
    }
    Ok(body)
}

fn explain(error: &reqwest::Error, url: &str, reads: bool) -> PortError {
    let text = format!("{}: {}", without_secrets(url), chain(error));
    if error.is_builder() || error.is_request() && error.is_connect() && text.contains("invalid URL") {
        PortError::Config(text)
    } else if error.is_connect() || reads {
        PortError::Unreachable(text)
    } else {
        PortError::Unknown(text)
    }
}

/// Webhook addresses often carry a token: neither password nor query is repeated in errors.
fn without_secrets(url: &str) -> String {
    match url.parse::<Url>() {
        Ok(url) => {
            let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
            format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
        }
        Err(_) => "the URL".to_owned(),
    }
}

/// An error and what caused it, without the URL, which reqwest would repeat.
fn chain(error: &reqwest::Error) -> String {
    let mut cause = std::error::Error::source(error);
    let mut parts: Vec<String> = Vec::new();
    if error.is_timeout() {
        parts.push("no answer in time".to_owned());
    }
    while let Some(e) = cause {
        parts.push(e.to_string());
        cause = e.source();
    }
    parts.dedup();
    if parts.is_empty() { "the request failed".to_owned() } else { parts.join(": ") }
}
