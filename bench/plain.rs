//! The baseline `plain`: the shape as everybody writes it. One `DECR` through the pool and one
//! produce awaited, for each request; nothing is kept that a crash between the two would need.
//!
//! Usage: plain ADDR, with `SECKILL_REDIS_URL` and `SECKILL_KAFKA_BROKERS`

use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use deadpool_redis::{Config, Pool, Runtime};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use uuid::Uuid;

const TOPIC: &str = "plain";
const COUNTER: &str = "plain";

async fn buy(pool: web::Data<Pool>, producer: web::Data<FutureProducer>) -> HttpResponse {
    let Ok(mut redis) = pool.get().await else { return HttpResponse::ServiceUnavailable().finish() };
    let left: Result<i64, _> = redis::cmd("DECR").arg(COUNTER).query_async(&mut redis).await;
    drop(redis);
    match left {
        Ok(left) if left >= 0 => {
            let order = Uuid::now_v7().to_string();
            let sale = json!({ "order": order, "item": COUNTER, "remaining": left }).to_string();
            let record = FutureRecord::to(TOPIC).key(&order).payload(&sale);
            match producer.send(record, Duration::from_secs(10)).await {
                Ok(_) => HttpResponse::Ok().json(json!({ "code": "success", "num": left, "order": order })),
                Err(_) => HttpResponse::ServiceUnavailable().finish(),
            }
        }
        Ok(_) => HttpResponse::Ok().json(json!({ "code": "sold_out", "num": 0 })),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3034".into());
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let pool = Config::from_url(std::env::var("SECKILL_REDIS_URL")?).create_pool(Some(Runtime::Tokio1))?;
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", std::env::var("SECKILL_KAFKA_BROKERS")?)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .create()?;
    let (pool, producer) = (web::Data::new(pool), web::Data::new(producer));
    HttpServer::new(move || {
        App::new().app_data(pool.clone()).app_data(producer.clone()).default_service(web::to(buy))
    })
    .backlog(8192)
    .bind(address)?
    .run()
    .await?;
    Ok(())
}
