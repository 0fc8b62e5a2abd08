//! The API's own description (OpenAPI 3.1), made from the types of the answers.

use utoipa::OpenApi;

use super::view;

/// The whole document.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "homescar",
        description = "A running homescar, asked and told what to do. Over TCP every request but \
                       those for /live and /ready needs `Authorization: Bearer TOKEN`."
    ),
    paths(
        live, ready, status, metrics, explain, simulate, openapi, restart, scale, slot, reload,
        upgrade, stop
    ),
    components(schemas(view::Error))
)]
struct Document;

/// Whether the process lives.
#[utoipa::path(get, path = "/live", responses((status = 200, body = String)))]
const fn live() {}

/// Whether clients are served.
#[utoipa::path(get, path = "/ready", responses(
    (status = 200, body = String), (status = 503, body = String)
))]
const fn ready() {}

/// Everything at a glance.
#[utoipa::path(get, path = "/status", responses((status = 200, body = view::Status)))]
const fn status() {}

/// Metrics in the text format of Prometheus, or OpenMetrics for who accepts that.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, body = String, content_type = "text/plain"),
))]
const fn metrics() {}

/// The way from a client's address to its slot, and why. `cluster` may be left out where there is
/// only one; `cookie` is the text of its affinity cookie, `value` that of the header or parameter that
/// the cluster goes by.
#[utoipa::path(get, path = "/explain",
    params(
        ("client" = String, Query), ("cluster" = Option<String>, Query),
        ("cookie" = Option<String>, Query), ("value" = Option<String>, Query)
    ),
    responses(
        (status = 200, body = view::Explanation),
        (status = 400, body = view::Error),
        (status = 404, body = view::Error)
    )
)]
const fn explain() {}

/// Which of the clients that are connected now would move if these slots went and so many came.
/// Nothing is changed. `remove` may be repeated.
#[utoipa::path(get, path = "/simulate",
    params(
        ("cluster" = Option<String>, Query), ("remove" = Option<String>, Query),
        ("add" = Option<usize>, Query)
    ),
    responses(
        (status = 200, body = view::Simulation),
        (status = 400, body = view::Error),
        (status = 404, body = view::Error)
    )
)]
const fn simulate() {}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200)))]
const fn openapi() {}

/// Replaces the workers of a cluster, slot after slot. The answer has a line (JSON) for each slot as
/// soon as it is known what came of it, and a last one with the whole.
#[utoipa::path(post, path = "/restart", request_body = view::Restart, responses(
    (status = 200, body = view::Step, content_type = "application/x-ndjson"),
    (status = 404, body = view::Error),
    (status = 409, body = view::Error)
))]
const fn restart() {}

/// Changes the number of a cluster's workers, at the high end of the slots' numbers.
#[utoipa::path(post, path = "/scale", request_body = view::Scale, responses(
    (status = 200, body = view::Scaled),
    (status = 400, body = view::Error),
    (status = 404, body = view::Error)
))]
const fn scale() {}

/// Takes a slot out, or back.
#[utoipa::path(post, path = "/slot", request_body = view::SlotState, responses(
    (status = 200, body = view::Done), (status = 404, body = view::Error)
))]
const fn slot() {}

/// Reads the configuration again; with any fault nothing changes.
#[utoipa::path(post, path = "/reload", responses(
    (status = 200, body = view::Done), (status = 422, body = view::Error)
))]
const fn reload() {}

/// Becomes the program that now stands in the place of this one. Only one that did not is left to
/// answer: the connection breaks off when it did, and the next program answers at the same socket.
#[utoipa::path(post, path = "/upgrade", responses((status = 422, body = view::Error)))]
const fn upgrade() {}

/// Begins the orderly end; asked again, connections are cut, and then workers killed.
#[utoipa::path(post, path = "/stop", responses((status = 200, body = view::Done)))]
const fn stop() {}
