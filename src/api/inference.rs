//! The protocols that existing clients speak: the Open Inference Protocol ([`oip`]) and TensorFlow
//! Serving's REST interface ([`tfs`]). [`protocol`] has what the two share, their form of errors above
//! all.

mod named_images;
mod oip;
mod protocol;
mod tensor;
mod tfs;

use poem::{Route, get, post};

pub(super) use self::protocol::respond;

/// Adds the routes of both protocols to `route`.
pub(super) fn routes(route: Route) -> Route {
    route
        .at("/v2", get(oip::server))
        .at("/v2/health/live", get(oip::live))
        .at("/v2/health/ready", get(oip::ready))
        .at("/v2/models/:model", get(oip::model))
        .at("/v2/models/:model/ready", get(oip::model_ready))
        .at("/v2/models/:model/infer", post(oip::infer))
        .at("/v2/models/:model/versions/:version", get(oip::model))
        .at(
            "/v2/models/:model/versions/:version/ready",
            get(oip::model_ready),
        )
        .at(
            "/v2/models/:model/versions/:version/infer",
            post(oip::infer),
        )
        .at("/v2/models/:model/config", get(oip::config))
        .at("/v2/models/:model/stats", get(oip::statistics))
        .at("/v2/models/stats", get(oip::all_statistics))
        .at(
            "/v2/models/:model/versions/:version/config",
            get(oip::config),
        )
        .at(
            "/v2/models/:model/versions/:version/stats",
            get(oip::statistics),
        )
        .at("/v2/repository/index", post(oip::repository_index))
        .at("/v1/models", get(tfs::models))
        .at(
            "/v1/models/:model/labels/:label",
            get(tfs::status).post(tfs::predict),
        )
        .at(
            "/v1/models/:model/versions/:version/metadata",
            get(tfs::metadata),
        )
        .at(
            "/v1/models/:model/labels/:label/metadata",
            get(tfs::metadata),
        )
        .at("/v1/models/:model", get(tfs::status).post(tfs::predict))
        .at(
            "/v1/models/:model/versions/:version",
            get(tfs::status).post(tfs::predict),
        )
        .at("/v1/models/:model/metadata", get(tfs::metadata))
}

/// Says whether a path belongs to these protocols, whose errors have a form of their own.
pub(super) fn owns(path: &str) -> bool {
    path == "/v2"
        || path.starts_with("/v2/")
        || path == "/v1/models"
        || path.starts_with("/v1/models/")
}

/// Reads a body as each of the routes does; `json_length` is the header before binary tensors.
#[cfg(fuzzing)]
pub(super) fn fuzz(json_length: Option<&str>, bytes: &[u8]) {
    oip::fuzz(json_length, bytes::Bytes::copy_from_slice(bytes));
    tfs::fuzz(bytes);
}
