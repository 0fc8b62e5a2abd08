//! The routes of a worker.
//!
//! | route | answer |
//! |---|---|
//! | `GET /`, `/style.css`, `/app.js` | the page |
//! | `GET /health` | `ok`, when the loop turns |
//! | `GET /whoami` | `{pid, slot, generation, path}` |
//! | `GET /stats` | the loop's delay over the last minute, the pool, the sockets |
//! | `GET /ws` | the chat, as a WebSocket |
//! | `POST /hash` | `{"password": "…"}` → `{hash, ms, on}`; `?on=loop` does it on the event loop; 429 when the pool is full |
//! | `POST /kill` | this process ends at once, without an answer; with `?pid=N` only if it is that one |

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderMap, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::{debug, warn};

use super::{
    hash::{HashError, Place},
    page,
    session::{self, Front},
    worker::Worker,
};

/// For the head of a request to arrive; also how long a connection may be idle between two.
const HEADER_WITHIN: Duration = Duration::from_secs(10);
const BODY_WITHIN: Duration = Duration::from_secs(10);
const BODY_AT_MOST: usize = 4 * 1024;
/// WebSockets open at one time.
const SOCKETS_AT_MOST: usize = 2048;
const RETRY_AFTER_SECS: &str = "1";

type Answer = Response<Full<Bytes>>;

/// Serves one connection, until it ends or the worker stops.
pub(super) async fn serve<I>(worker: Arc<Worker>, io: I)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stopping = worker.stopping.clone();
    let service = service_fn(move |request| answer(Arc::clone(&worker), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WITHIN)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

async fn answer(worker: Arc<Worker>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let path = request.uri().path();
    let allowed: &[Method] = match path {
        "/hash" | "/kill" => &[Method::POST],
        _ => &[Method::GET, Method::HEAD],
    };
    if !allowed.contains(request.method()) {
        let mut refused = problem(StatusCode::METHOD_NOT_ALLOWED, "use another method");
        let methods = if allowed.len() == 1 {
            "POST"
        } else {
            "GET, HEAD"
        };
        refused
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static(methods));
        return Ok(refused);
    }
    Ok(match path {
        "/health" => text(StatusCode::OK, "text/plain; charset=utf-8", "ok"),
        "/whoami" => json_answer(StatusCode::OK, &who(&worker, path)),
        "/stats" => json_answer(StatusCode::OK, &stats(&worker)),
        "/ws" | "/hash" | "/kill" if is_foreign(request.headers()) => {
            problem(StatusCode::FORBIDDEN, "another site's page may not do this")
        }
        "/ws" => upgrade(worker, request),
        "/hash" => hash(&worker, request).await,
        "/kill" => kill_myself(&worker, request.uri().query()),
        _ => page::find(path).map_or_else(
            || problem(StatusCode::NOT_FOUND, "there is nothing here"),
            |file| text(StatusCode::OK, file.media_type, file.content),
        ),
    })
}

fn who(worker: &Worker, path: &str) -> Value {
    json!({
        "pid": std::process::id(),
        "slot": worker.env.slot,
        "generation": worker.env.generation,
        "path": path,
    })
}

fn stats(worker: &Worker) -> Value {
    json!({
        "pid": std::process::id(),
        "slot": worker.env.slot,
        "generation": worker.env.generation,
        "sockets": worker.chat.sockets(),
        "loop_delay": worker.loop_delay.report(),
        "pool": worker.hasher.pool(),
    })
}

/// Whether a browser says that the page of another site sent this.
fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    match (host, origin) {
        (Some(host), Some((_, origin))) => !origin.eq_ignore_ascii_case(host),
        _ => true,
    }
}

fn upgrade(worker: Arc<Worker>, mut request: Request<Incoming>) -> Answer {
    let headers = request.headers();
    let has = |name, token: &str| {
        let values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|one| one.trim().eq_ignore_ascii_case(token))
    };
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        let mut refused = problem(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket");
        let upgrade = HeaderValue::from_static("websocket");
        refused.headers_mut().insert(header::UPGRADE, upgrade);
        return refused;
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        let mut refused = problem(StatusCode::UPGRADE_REQUIRED, "the version must be 13");
        let version = HeaderValue::from_static("13");
        refused
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_VERSION, version);
        return refused;
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return problem(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    if worker.chat.sockets() >= SOCKETS_AT_MOST {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "this worker is full");
    }
    let accept = derive_accept_key(key.as_bytes());
    let front = Front::of(headers);
    let upgrading = hyper::upgrade::on(&mut request);
    let tasks = worker.tasks.clone();
    tasks.spawn(async move {
        match upgrading.await {
            Ok(upgraded) => session::serve(worker, upgraded, front).await,
            Err(error) => debug!(%error, "a client left in the middle of its upgrade"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .body(Full::default())
        .expect("base64 is a header value")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HashBody {
    password: String,
}

async fn hash(worker: &Worker, request: Request<Incoming>) -> Answer {
    let place = match request.uri().query().unwrap_or_default() {
        "" | "on=pool" => Place::Pool,
        "on=loop" => Place::Loop,
        _ => return problem(StatusCode::BAD_REQUEST, "write ?on=pool or ?on=loop"),
    };
    let body = Limited::new(request.into_body(), BODY_AT_MOST).collect();
    let body = match timeout(BODY_WITHIN, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return problem(StatusCode::PAYLOAD_TOO_LARGE, "a body has at most 4 KiB");
        }
        Ok(Err(_)) => return problem(StatusCode::BAD_REQUEST, "the body was cut off"),
        Err(_) => return problem(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
    };
    let Ok(HashBody { password }) = serde_json::from_slice(&body) else {
        return problem(StatusCode::BAD_REQUEST, "send {\"password\": \"…\"}");
    };
    match worker.hasher.hash(password, place).await {
        Ok(hashed) => json_answer(StatusCode::OK, &json!(hashed)),
        Err(error) => {
            let status = StatusCode::from_u16(error.status()).unwrap_or_default();
            let mut refused = problem(status, &error.to_string());
            if matches!(error, HashError::Busy(_)) {
                let after = HeaderValue::from_static(RETRY_AFTER_SECS);
                refused.headers_mut().insert(header::RETRY_AFTER, after);
            }
            refused
        }
    }
}

/// A browser sends a request again, even a POST, when a connection that it had used before breaks
/// without an answer. The page therefore names whom it means: the next generation must not die of
/// the same click.
fn kill_myself(worker: &Worker, query: Option<&str>) -> Answer {
    let me = std::process::id().to_string();
    match query.map(|query| query.strip_prefix("pid=")) {
        None => {}
        Some(Some(pid)) if pid == me => {}
        Some(Some(_)) => return problem(StatusCode::CONFLICT, "that worker is gone already"),
        Some(None) => return problem(StatusCode::BAD_REQUEST, "write ?pid=N, or nothing"),
    }
    warn!(slot = %worker.env.slot, "killed from the page");
    match kill(Pid::this(), Signal::SIGKILL) {
        Ok(()) => problem(StatusCode::SERVICE_UNAVAILABLE, "a ghost writes this"),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, error.desc()),
    }
}

fn problem(status: StatusCode, message: &str) -> Answer {
    json_answer(status, &json!({ "error": message }))
}

fn json_answer(status: StatusCode, value: &Value) -> Answer {
    let mut answer = text(status, "application/json", "");
    *answer.body_mut() = Full::from(value.to_string());
    answer
}

fn text(status: StatusCode, media_type: &'static str, content: &'static str) -> Answer {
    let mut answer = Response::new(Full::from(content));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; frame-ancestors 'none'",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_site_is_foreign_and_a_tool_without_a_page_is_not() {
        let headers = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("localhost:3000"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            headers
        };
        assert!(!is_foreign(&headers(None)));
        assert!(!is_foreign(&headers(Some("http://localhost:3000"))));
        assert!(!is_foreign(&headers(Some("https://LOCALHOST:3000"))));
        assert!(is_foreign(&headers(Some("http://evil.example"))));
        assert!(is_foreign(&headers(Some("http://localhost:3001"))));
        assert!(is_foreign(&headers(Some("null"))));
    }
}
