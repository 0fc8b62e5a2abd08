//! What the API offers: from a request to an answer.

use std::{io, num::NonZeroUsize, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Board, Demand, Phase, Refused,
    demand::Answer,
    explain::Question,
    metrics,
    simulate::Change,
    token::Token,
    view::{self, Done, Receipt, Step},
};
use crate::{cluster::AdminState, metrics::Format, supervisor::Outcome};

/// The body of an answer; some come piece by piece.
pub(super) type Body = BoxBody<Bytes, io::Error>;

/// A request's body may have so many bytes.
const LONGEST_BODY: usize = 64 * 1024;
/// … and may take so long to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// All that there is, with the method of each.
const PATHS: [(&str, Method); 13] = [
    ("/live", Method::GET),
    ("/ready", Method::GET),
    ("/status", Method::GET),
    ("/metrics", Method::GET),
    ("/explain", Method::GET),
    ("/simulate", Method::GET),
    ("/openapi.json", Method::GET),
    ("/restart", Method::POST),
    ("/scale", Method::POST),
    ("/slot", Method::POST),
    ("/reload", Method::POST),
    ("/upgrade", Method::POST),
    ("/stop", Method::POST),
];

/// Answers a request. Over TCP it must show the token, but for whether homescar lives and is ready,
/// which those ask who have no secrets.
pub(super) async fn answer(
    request: Request<Incoming>,
    board: &Arc<Board>,
    demands: &mpsc::Sender<Demand>,
    token: Option<&Token>,
) -> Response<Body> {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let is_open = matches!(path.as_str(), "/live" | "/ready");
    if let (false, Some(token)) = (is_open, token)
        && !shows(&request, token)
    {
        let mut refused = error(StatusCode::UNAUTHORIZED, "the token is missing or wrong");
        let bearer = HeaderValue::from_static("Bearer");
        refused.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        return refused;
    }
    let Some((_, method)) = PATHS.iter().find(|(known, _)| *known == path) else {
        let known: Vec<_> = PATHS.iter().map(|(path, _)| *path).collect();
        let why = format!("there is no {path}; there are {}", known.join(", "));
        return error(StatusCode::NOT_FOUND, why);
    };
    let is_head = request.method() == Method::HEAD && method == Method::GET;
    if request.method() != method && !is_head {
        let mut refused = error(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{path} is for {method}"),
        );
        if let Ok(method) = HeaderValue::from_str(method.as_str()) {
            refused.headers_mut().insert(ALLOW, method);
        }
        return refused;
    }
    match path.as_str() {
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" => readiness(board),
        "/status" => json(StatusCode::OK, &view::Status::of(board).await),
        "/metrics" => measured(board, &request).await,
        "/explain" => explain(board, &request).unwrap_or_else(|why| refuse(&why)),
        "/simulate" => simulate(board, &request)
            .await
            .unwrap_or_else(|why| refuse(&why)),
        "/openapi.json" => json(StatusCode::OK, &super::openapi::document()),
        "/restart" => restart(request, demands)
            .await
            .unwrap_or_else(|why| refuse(&why)),
        "/scale" => scale(request, demands)
            .await
            .unwrap_or_else(|why| refuse(&why)),
        "/slot" => slot(request, demands)
            .await
            .unwrap_or_else(|why| refuse(&why)),
        "/upgrade" => done(ask(demands, Demand::Upgrade).await, "upgraded"),
        "/reload" => done(ask(demands, Demand::Reload).await, "reloaded"),
        _ => done(ask(demands, Demand::Stop).await, "ending"),
    }
}

fn shows(request: &Request<Incoming>, token: &Token) -> bool {
    let shown = request.headers().get(AUTHORIZATION);
    let shown = shown.and_then(|value| value.to_str().ok());
    shown.is_some_and(|value| token.is_shown_by(value))
}

fn readiness(board: &Board) -> Response<Body> {
    match (board.is_ready(), board.phase()) {
        (true, _) => text(StatusCode::OK, "ready\n"),
        (false, Phase::Draining) => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        (false, Phase::Running) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "a cluster has no slot that takes clients\n",
        ),
    }
}

/// The page of metrics, as its reader likes it.
async fn measured(board: &Arc<Board>, request: &Request<Incoming>) -> Response<Body> {
    let accept = request.headers().get(ACCEPT);
    let accept = accept.and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    match metrics::page(board, format).await {
        Ok(page) => respond(StatusCode::OK, format.content_type(), page),
        Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, failed.to_string()),
    }
}

fn explain(board: &Board, request: &Request<Incoming>) -> Result<Response<Body>, Refused> {
    let question = Question::read(request.uri().query().unwrap_or_default())?;
    Ok(json(StatusCode::OK, &question.answer(board)?))
}

async fn simulate(board: &Board, request: &Request<Incoming>) -> Result<Response<Body>, Refused> {
    let change = Change::read(request.uri().query().unwrap_or_default())?;
    Ok(json(StatusCode::OK, &change.simulate(board).await?))
}

/// Has the application do something.
async fn ask<T>(
    demands: &mpsc::Sender<Demand>,
    demand: impl FnOnce(Answer<T>) -> Demand,
) -> Result<T, Refused> {
    let (answer, answered) = oneshot::channel();
    let sent = demands.send(demand(answer)).await;
    sent.map_err(|_| Refused::Ending)?;
    answered.await.unwrap_or(Err(Refused::Ending))
}

fn done(result: Result<(), Refused>, what: &str) -> Response<Body> {
    match result {
        Ok(()) => json(StatusCode::OK, &Done { done: what.into() }),
        Err(refused) => refuse(&refused),
    }
}

fn refuse(refused: &Refused) -> Response<Body> {
    let status = match refused {
        Refused::Unknown(_) => StatusCode::NOT_FOUND,
        Refused::Invalid(_) => StatusCode::BAD_REQUEST,
        Refused::Conflict(_) => StatusCode::CONFLICT,
        Refused::Failed(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refused::Ending => StatusCode::SERVICE_UNAVAILABLE,
    };
    error(status, refused.to_string())
}

/// A line for each slot, when it is known what came of it; then the whole.
async fn restart(
    request: Request<Incoming>,
    demands: &mpsc::Sender<Demand>,
) -> Result<Response<Body>, Refused> {
    let view::Restart { cluster, parallel } = body_of(request).await?;
    let began = Instant::now();
    let receipts = ask(demands, |answer| Demand::Restart {
        cluster: cluster.clone(),
        parallel: parallel.unwrap_or(NonZeroUsize::MIN),
        answer,
    });
    let receipts = receipts.await?;
    let whole = Receipt {
        cluster,
        ok: true,
        ms: 0,
        slots: Vec::new(),
    };
    let steps = stream::unfold(Some((receipts, whole)), move |state| async move {
        let (mut receipts, mut whole) = state?;
        let (step, state) = match receipts.recv().await {
            Some(slot) => {
                whole.ok &= slot.outcome != Outcome::Failed;
                whole.slots.push(slot.clone());
                (Step::Slot(slot), Some((receipts, whole)))
            }
            None => {
                whole.ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                (Step::Receipt(whole), None)
            }
        };
        let line = serde_json::to_vec(&step).map_err(io::Error::other);
        let line = line.map(|mut line| {
            line.push(b'\n');
            Frame::data(Bytes::from(line))
        });
        Some((line, state))
    });
    let body = StreamBody::new(steps).boxed();
    Ok(streamed(StatusCode::OK, "application/x-ndjson", body))
}

async fn scale(
    request: Request<Incoming>,
    demands: &mpsc::Sender<Demand>,
) -> Result<Response<Body>, Refused> {
    let view::Scale { cluster, count } = body_of(request).await?;
    let scaled = ask(demands, |answer| Demand::Scale {
        cluster,
        count,
        answer,
    });
    Ok(json(StatusCode::OK, &scaled.await?))
}

async fn slot(
    request: Request<Incoming>,
    demands: &mpsc::Sender<Demand>,
) -> Result<Response<Body>, Refused> {
    let view::SlotState { slot, state } = body_of(request).await?;
    let what = format!("{slot}: {}", AdminState::from(state).as_str());
    let told = ask(demands, |answer| Demand::Slot {
        slot,
        state: state.into(),
        answer,
    });
    Ok(done(told.await, &what))
}

/// The body of a request, as JSON.
async fn body_of<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refused> {
    let body = Limited::new(request.into_body(), LONGEST_BODY).collect();
    let body = timeout(BODY_TIMEOUT, body).await;
    let body = body.map_err(|_| Refused::Invalid("the body did not come in time".into()))?;
    let body =
        body.map_err(|error| Refused::Invalid(format!("the body cannot be read: {error}")))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Refused::Invalid(format!("the body is not as it should be: {error}")))
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => respond(status, "application/json", text),
        Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, failed.to_string()),
    }
}

fn error(status: StatusCode, why: impl Into<String>) -> Response<Body> {
    let error = view::Error { error: why.into() };
    let text = serde_json::to_vec(&error).unwrap_or_default();
    respond(status, "application/json", text)
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", text)
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {});
    streamed(status, content_type, body.boxed())
}

/// An answer that comes piece by piece.
pub(super) fn streamed(
    status: StatusCode,
    content_type: &'static str,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
