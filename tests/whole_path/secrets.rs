//! No secret leaks into logs, answers, metrics or process arguments, whatever `RUST_LOG` says.

use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use crate::buyers::{count, crowd, told};
use crate::process::{Env, free_port, output, until};
use crate::tls::{Authority, PASSWORD, Server, WRONG, redis_server, says_no_password};
use crate::world::{Servers, get};

const SOON: Duration = Duration::from_secs(20);

/// Every command of both programs; none affects another's output.
const COMMANDS: [(&str, &[&str]); 7] = [
    ("seckill", &["status"]),
    ("seckill", &["audit", "--json"]),
    ("seckill", &["restore"]),
    ("seckill", &["seed", "--add", "1"]),
    ("seckill", &["seed", "1", "--item", "other"]),
    ("consumer", &["migrate"]),
    ("seckill", &["--help"]),
];

/// A program's output, and whether it succeeded.
fn said(program: &str, env: &Env, args: &[&str], folder: &TempDir) -> (bool, String) {
    let ended = output(program, env, args, folder.path());
    let text = [ended.stdout, ended.stderr].concat();
    (ended.status.success(), String::from_utf8_lossy(&text).into_owned())
}

async fn text(url: &str) -> String {
    crate::buyers::client().get(url).send().await.unwrap().text().await.unwrap()
}

fn command_line(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap()
}

/// The right passwords, with every library at its most verbose; then two servers go away.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn right_ones() {
    let authority = Authority::new();
    let database = Server::start("mariadb", &authority);
    let mut servers = Servers::prepare();
    redis_server(&mut servers, &authority);
    let name = servers.database.rsplit_once('/').unwrap().1.to_owned();
    servers.database = format!("mysql://seckill:seckill@127.0.0.1:{}/{name}", database.port);
    servers.make_database().await;
    let url = format!("mysql://seckill_tls:{PASSWORD}@127.0.0.1:{}/{name}?ssl-mode=REQUIRED", database.port);
    servers.set("SECKILL_DATABASE_URL", &url);
    let options = format!("sasl.mechanism=PLAIN,sasl.username=seckill,sasl.password={PASSWORD},debug=all");
    servers.set("SECKILL_KAFKA_OPTIONS", &options);
    servers.set("RUST_LOG", "trace");

    let consumer_ops = format!("127.0.0.1:{}", free_port());
    let mut consumer = servers.consumer_at(&consumer_ops);
    let mut node = servers.ready_node(&[]).await;
    assert!(servers.operate(&["seed", "9"]).status.success());
    node.reaches("open", SOON).await;
    let answers = crowd(&[node.buy_url()], 6, 6, true).await;
    assert_eq!(count(&answers, "success"), 6);
    for (program, args) in COMMANDS {
        let (well, said) = said(program, &servers.env, args, &servers.folder);
        assert!(well, "{program} {args:?}: {said}");
        says_no_password(&said);
    }
    servers.balance(&told(&answers), 6).await;

    drop(servers.redis.take());
    drop(database);
    node.reaches("unavailable", SOON).await;
    until("it says that it cannot sell", SOON, async || get(&format!("{}/readyz", node.ops)).await.0 == 503)
        .await;
    for ops in [node.ops.clone(), format!("http://{consumer_ops}")] {
        for path in ["readyz", "metrics", "livez"] {
            says_no_password(&text(&format!("{ops}/{path}")).await);
        }
    }
    says_no_password(&command_line(consumer.id()));
    says_no_password(&command_line(node.process.id()));
    assert!(node.process.running() && consumer.running());
    assert!(node.process.log().contains("TRACE"), "the log is as talkative as asked for");
    says_no_password(&node.process.log());
    says_no_password(&consumer.log());
}

/// Invalid addresses and options, in each variable.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_ones() {
    let folder = TempDir::new().unwrap();
    let good = [
        ("SECKILL_REDIS_URL", format!("redis://:{PASSWORD}@127.0.0.1:1/0")),
        ("SECKILL_KAFKA_BROKERS", "127.0.0.1:1".to_owned()),
        ("SECKILL_DATABASE_URL", format!("mysql://seckill:{PASSWORD}@127.0.0.1:1/seckill")),
        ("SECKILL_KAFKA_OPTIONS", format!("sasl.password={PASSWORD}")),
    ];
    let bad = [
        ("SECKILL_REDIS_URL", "redis://u:Sesame@"),
        ("SECKILL_REDIS_URL", "redis://u:Sesame@h:port/0"),
        ("SECKILL_REDIS_URL", "redis://:Sesame@h/Sesame"),
        ("SECKILL_REDIS_URL", "redis://:Sesame@h/0?protocol=Sesame"),
        ("SECKILL_REDIS_URL", "redis//:Sesame@h/0"),
        ("SECKILL_REDIS_URL", "rediss://:Sesame@h/0#Sesame"),
        ("SECKILL_REDIS_URL_FILE", "redis://:Sesame@h/0"),
        ("SECKILL_DATABASE_URL", "mysql://u:Sesame@/y"),
        ("SECKILL_DATABASE_URL", "mysql://u:Sesame@h:port/y"),
        ("SECKILL_DATABASE_URL", "mysql://u:Sesame@h/"),
        ("SECKILL_DATABASE_URL", "mysql://u:Sesame@h/y?ssl-mode=Sesame"),
        ("SECKILL_DATABASE_URL", "oracle://u:Sesame@h/y"),
        ("SECKILL_DATABASE_URL_FILE", "mysql://u:Sesame@h/y"),
        ("SECKILL_KAFKA_BROKERS_FILE", "u:Sesame@h"),
        ("SECKILL_KAFKA_OPTIONS", "Sesame"),
        ("SECKILL_KAFKA_OPTIONS", "sasl.password=Open,Sesame"),
        ("SECKILL_KAFKA_OPTIONS", "sasl.password=Open,Sesame=1"),
        ("SECKILL_KAFKA_OPTIONS", "sasl.pasword=Sesame"),
        ("SECKILL_KAFKA_OPTIONS", "security.protocol=Sesame,sasl.password=Sesame"),
        ("SECKILL_KAFKA_OPTIONS_FILE", "sasl.password=Sesame"),
    ];
    for (variable, value) in bad {
        let name = variable.trim_end_matches("_FILE");
        let mut env: Env = good
            .iter()
            .filter(|(set, _)| *set != name)
            .map(|(set, value)| ((*set).to_owned(), value.clone()))
            .collect();
        env.push((variable.to_owned(), value.to_owned()));
        env.push(("RUST_LOG".to_owned(), "trace".to_owned()));
        env.push(("SECKILL_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port())));
        env.push(("SECKILL_OPS_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port())));
        let programs: &[&str] =
            if name == "SECKILL_REDIS_URL" { &["seckill"] } else { &["seckill", "consumer"] };
        for program in programs {
            let args: &[&str] = if *program == "seckill" { &["serve"] } else { &[] };
            let (well, said) = said(program, &env, args, &folder);
            assert!(!well && said.contains(name), "{variable}={value}: {said}");
            says_no_password(&said);
        }
    }
}

/// A server that is not Redis and echoes its input, as old ones do with an unknown command.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_by_a_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (read, mut write) = stream.split();
                let mut lines = BufReader::new(read).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if !line.starts_with(['*', '$'])
                        && write
                            .write_all(
                                format!("-ERR unknown command, with args beginning with: '{line}'\r\n")
                                    .as_bytes(),
                            )
                            .await
                            .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    let folder = TempDir::new().unwrap();
    for query in ["", "?protocol=resp3"] {
        let env: Env = vec![
            ("SECKILL_REDIS_URL".into(), format!("redis://seckill:{WRONG}@127.0.0.1:{port}/0{query}")),
            ("SECKILL_KAFKA_BROKERS".into(), "127.0.0.1:1".into()),
            ("SECKILL_DATABASE_URL".into(), "mysql://a:b@127.0.0.1:1/c".into()),
            ("RUST_LOG".into(), "trace".into()),
        ];
        let (well, said) = said("seckill", &env, &["status"], &folder);
        assert!(!well && said.contains("redis"), "{said}");
        says_no_password(&said);
    }
}
