//! `GET /metrics`: what Prometheus reads. Open to everybody who reaches the port; not part of the specification, which is for applications.

use poem::web::Data;
use poem::{IntoResponse, Response, handler};

use super::problem::Failure;
use super::state::ApiState;
use crate::metrics::CONTENT_TYPE;

/// The metrics' text; before the model is loaded too.
#[handler]
pub(super) fn text(Data(state): Data<&ApiState>) -> poem::Result<Response> {
    let Some(metrics) = state.metrics() else {
        return Err(Failure::internal().into());
    };
    let service = state.service().ok();
    let text = metrics.text(service.map(AsRef::as_ref)).map_err(|error| {
        tracing::error!("{error}");
        Failure::internal()
    })?;
    Ok(text.with_content_type(CONTENT_TYPE).into_response())
}
