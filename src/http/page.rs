//! `GET /`: the page, from the binary itself.

use actix_web::http::header;
use actix_web::{HttpResponse, web};

/// Path, type and bytes of everything the page needs.
const FILES: [(&str, &str, &[u8]); 4] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../../static/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("../../static/app.js")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("../../static/style.css")),
    ("/favicon.svg", "image/svg+xml", include_bytes!("../../static/favicon.svg")),
];

pub(super) fn routes(app: &mut web::ServiceConfig) {
    for (path, kind, bytes) in FILES {
        let answer = move || async move {
            HttpResponse::Ok()
                .insert_header((header::CACHE_CONTROL, "no-cache"))
                .content_type(kind)
                .body(bytes)
        };
        app.service(
            super::resource(path, "GET, HEAD").route(web::get().to(answer)).route(web::head().to(answer)),
        );
    }
}
