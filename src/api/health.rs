//! The health routes: whether the process lives, and whether it would serve a request.

use poem::web::Data;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};

use super::problem::Failure;
use super::state::ApiState;

/// A state in one word.
#[derive(Debug, Object)]
pub(super) struct Health {
    /// `live` or `ready`.
    status: String,
}

#[derive(ApiResponse)]
pub(super) enum HealthResponse {
    /// Well.
    #[oai(status = 200)]
    Ok(Json<Health>),
}

impl HealthResponse {
    fn of(status: &str) -> Self {
        Self::Ok(Json(Health {
            status: status.to_owned(),
        }))
    }
}

pub(super) struct HealthRoutes;

#[OpenApi(tag = "super::Group::Health")]
impl HealthRoutes {
    /// Is the process alive?
    ///
    /// Answers 200 as long as the process answers at all.
    #[oai(path = "/health/live", method = "get", operation_id = "health_live")]
    async fn live(&self) -> HealthResponse {
        HealthResponse::of("live")
    }

    /// Will requests be served?
    ///
    /// Answers 200 once the model is loaded and warm and as long as its workers are well; 503 before that, and while the service shuts
    /// down. A full queue changes nothing.
    #[oai(path = "/health/ready", method = "get", operation_id = "health_ready")]
    async fn ready(&self, Data(state): Data<&ApiState>) -> Result<HealthResponse, Failure> {
        state.service()?.ready()?;
        Ok(HealthResponse::of("ready"))
    }
}
