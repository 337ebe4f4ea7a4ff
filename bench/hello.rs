//! The baseline `hello`: one constant JSON answer, with as many workers as cores. What answering
//! HTTP costs at all.
//!
//! Usage: hello ADDR

use actix_web::http::header;
use actix_web::{App, HttpResponse, HttpServer, web};

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3033".into());
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let hello = async || {
        let answer = r#"{"code":"sold_out","messages":"Sold out","num":0}"#;
        HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "application/json")).body(answer)
    };
    HttpServer::new(move || App::new().default_service(web::to(hello)))
        .backlog(8192)
        .bind(address)?
        .run()
        .await
}
