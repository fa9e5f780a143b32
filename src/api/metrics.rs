//! `GET /metrics`: what Prometheus reads. The route is open to everybody who reaches the port. It
//! is not in the specification, which is for applications.

use poem::web::Data;
use poem::{IntoResponse, Response, handler};

use super::problem::Failure;
use super::state::ApiState;
use crate::metrics::CONTENT_TYPE;

/// Answers with the metrics in Prometheus's text format, also before the model is loaded.
#[handler]
pub(super) fn text(Data(state): Data<&ApiState>) -> poem::Result<Response> {
    let Some(metrics) = state.metrics() else {
        return Err(Failure::internal_because("/metrics is served without metrics").into());
    };
    let service = state.service().ok();
    let text = metrics.text(service.map(AsRef::as_ref));
    let text = text.map_err(Failure::internal_because)?;
    Ok(text.with_content_type(CONTENT_TYPE).into_response())
}
