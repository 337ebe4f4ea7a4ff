//! `GET /seckill/orders/{order}`: an order's status.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Front;
use super::answer::{Code, JSON, NO_STORE, head, problem};
use crate::sale::OrderStatus;

/// An order's status.
#[derive(Serialize, ToSchema)]
#[schema(as = Order)]
pub(super) struct Body {
    order: Uuid,
    /// `pending` (taken, or not known yet), `accepted` (in the journal), `recorded` (in the ledger).
    #[schema(value_type = String, pattern = "^(pending|accepted|recorded)$")]
    status: &'static str,
}

pub(super) async fn order(
    request: HttpRequest,
    path: web::Path<String>,
    front: web::Data<Front>,
) -> HttpResponse {
    let Ok(order) = Uuid::try_parse(&path) else {
        return problem(&request, Code::BadRequest, Some("an order is a UUID"));
    };
    let status = match front.shop.order(order).await {
        OrderStatus::Pending => "pending",
        OrderStatus::Accepted => "accepted",
        OrderStatus::Recorded => "recorded",
        OrderStatus::Undecided => {
            let why =
                "nobody can say: the journal is not the one that was recorded, and an operator must mend it";
            return problem(&request, Code::Unavailable, Some(why));
        }
        OrderStatus::Unknown => {
            return problem(&request, Code::NotFound, Some("this order did not come about"));
        }
    };
    head(StatusCode::OK, &JSON, &NO_STORE).json(Body { order, status })
}
