//! TLS and passwords: each real server, with a certificate made here. A refused program says why, without the
//! password, and no buyer is told "sold out".

use std::process::Command;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::buyers::{buy, client, count, crowd, told};
use crate::process::{Process, free_port, output, until};
use crate::world::{Node, Servers};

/// Both contain the word that must not leak.
pub const PASSWORD: &str = "Open-Sesame.42";
pub const WRONG: &str = "Shut-Sesame.43";
const SOON: Duration = Duration::from_secs(20);

/// A CA, its certificate for 127.0.0.1, and a foreign CA, as files.
pub struct Authority {
    pub folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        for name in ["ca.pem", "stranger.pem"] {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            write(name, &params.self_signed(&key).unwrap().pem());
            let issuer = Issuer::new(params, key);
            let key = KeyPair::generate().unwrap();
            let server = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
            let server = server.signed_by(&key, &issuer).unwrap();
            if name == "ca.pem" {
                write("server.pem", &(key.serialize_pem() + &server.pem()));
            }
        }
        write("password", PASSWORD);
        Self { folder }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// The test's own MariaDB or Kafka with TLS; stopped with the test.
pub struct Server {
    name: &'static str,
    folder: TempDir,
    pub port: u16,
    tls: String,
}

impl Server {
    pub fn start(name: &'static str, authority: &Authority) -> Self {
        // Kafka also needs the next two.
        let port = loop {
            let ports = [free_port(), free_port(), free_port()];
            if ports[2] == ports[0] + 2 {
                break ports[0];
            }
        };
        let tls = authority.folder.path().display().to_string();
        let server = Self { name, folder: TempDir::new().unwrap(), port, tls };
        server.script(&["start", name]);
        server
    }

    fn script(&self, args: &[&str]) {
        let ended = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers"))
            .args(args)
            .env("SECKILL_SERVERS_DIR", self.folder.path())
            .env("SECKILL_SERVERS_TLS", &self.tls)
            .env(format!("SECKILL_SERVERS_{}_PORT", self.name.to_uppercase()), self.port.to_string())
            .output()
            .unwrap();
        assert!(ended.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&ended.stderr));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.script(&["down", "--wipe"]);
            return;
        }
        let pid = std::fs::read_to_string(self.folder.path().join(format!("{}.pid", self.name)));
        let _ = Command::new("kill").arg("-9").arg(pid.unwrap_or_default().trim()).status();
    }
}

/// The same port by an address that is not in the certificate.
async fn alias(port: u16) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    address
}

pub fn says_no_password(text: &str) {
    let line = text.lines().find(|line| line.contains("Sesame"));
    assert!(line.is_none(), "{line:?}");
}

/// A TLS-only Redis, with the user and the rights that SECURITY.md shows, no more.
pub fn redis_server(servers: &mut Servers, authority: &Authority) {
    let port = servers.redis_port;
    let security = include_str!("../../SECURITY.md");
    let user = security.lines().find(|line| line.starts_with("user seckill on >PASSWORD ")).unwrap();
    let (certificate, folder) = (authority.path("server.pem"), servers.folder.path());
    let text = format!(
        "bind 127.0.0.1\nport 0\ntls-port {port}\ntls-cert-file {certificate}\ntls-key-file {certificate}\n\
         tls-ca-cert-file {}\ntls-auth-clients no\nsave \"\"\nappendonly yes\nappendfsync always\ndir {}\n\
         user default off\n{}\n",
        authority.path("ca.pem"),
        folder.display(),
        user.replace("PASSWORD", PASSWORD),
    );
    let conf = folder.join("redis.conf");
    std::fs::write(&conf, text).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&conf);
    let redis = Process::start("redis", command, &folder.join("redis.log"));
    servers.redis = Some(redis);
    servers.set("SECKILL_REDIS_URL", &format!("rediss://seckill:{PASSWORD}@127.0.0.1:{port}/0"));
    servers.set("SSL_CERT_FILE", &authority.path("ca.pem"));
}

/// With these settings a service sells nothing, says why, and never says "sold out".
async fn refused(servers: &Servers, settings: &[(&str, &str)], why: &str) {
    let _ = std::fs::remove_file(servers.folder.path().join("seckill.log"));
    let node = servers.node(settings);
    until(&format!("the log says {why}"), SOON, async || node.process.log().contains(why)).await;
    unavailable(&node).await;
    says_no_password(&node.process.log());
    assert!(node.process.stop().await.success());
}

/// Creates the tables before a service may be killed halfway.
fn migrate(servers: &Servers) {
    let made = output("consumer", &servers.env, &["migrate"], servers.folder.path());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

async fn unavailable(node: &Node) {
    assert_eq!(node.state().await, "unavailable");
    for key in [None, Some("a-key")] {
        let answer = buy(&client(), &node.buy_url(), key).await;
        assert_eq!((answer.code.as_str(), answer.status.unwrap().as_u16()), ("unavailable", 503));
    }
}

/// Ten units, fifteen buyers, and the books.
async fn sells(servers: &Servers) {
    let consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    let seeded = servers.operate(&["seed", "10"]);
    assert!(seeded.status.success(), "{}", String::from_utf8_lossy(&seeded.stderr));
    node.reaches("open", SOON).await;
    let answers = crowd(&[node.buy_url()], 15, 15, true).await;
    assert_eq!((count(&answers, "success"), count(&answers, "sold_out")), (10, 5));
    servers.balance(&told(&answers), 10).await;
    says_no_password(&node.process.log());
    says_no_password(&consumer.log());
}

/// `rediss://`, and a user with only the rights in SECURITY.md.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn redis() {
    let authority = Authority::new();
    let mut servers = Servers::prepare();
    servers.make_database().await;
    redis_server(&mut servers, &authority);
    migrate(&servers);
    let url =
        |scheme: &str, password: &str, address: &str| format!("{scheme}://seckill:{password}@{address}/0");
    let port = servers.redis_port;
    let here = format!("127.0.0.1:{port}");
    let wrong = url("rediss", WRONG, &here);
    refused(&servers, &[("SECKILL_REDIS_URL", &wrong)], "Password authentication failed").await;
    refused(&servers, &[("SSL_CERT_FILE", &authority.path("stranger.pem"))], "UnknownIssuer").await;
    let elsewhere = url("rediss", PASSWORD, &alias(port).await);
    refused(&servers, &[("SECKILL_REDIS_URL", &elsewhere)], "not valid for name").await;
    let plain = url("redis", PASSWORD, &here);
    refused(&servers, &[("SECKILL_REDIS_URL", &plain)], "redis is away").await;
    sells(&servers).await;
}

/// `ssl-mode=VERIFY_IDENTITY`, and a user who must use TLS. Without its database the service sells on; ledger
/// requests report the reason.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn database() {
    let authority = Authority::new();
    let server = Server::start("mariadb", &authority);
    let mut servers = Servers::prepare();
    let (_, name) = servers.database.rsplit_once('/').unwrap();
    let name = name.to_owned();
    servers.database = format!("mysql://seckill:seckill@127.0.0.1:{}/{name}", server.port);
    servers.start_redis().await;
    servers.make_database().await;
    let url = |password: &str, address: &str, options: &str| {
        format!("mysql://seckill_tls:{password}@{address}/{name}?{options}")
    };
    let here = format!("127.0.0.1:{}", server.port);
    let verified = |ca: &str| format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={}", authority.path(ca));
    for (wrong, why) in [
        (url(WRONG, &here, &verified("ca.pem")), "Access denied"),
        (url(PASSWORD, &here, &verified("stranger.pem")), "UnknownIssuer"),
        (url(PASSWORD, &alias(server.port).await, &verified("ca.pem")), "not valid for name"),
        (url(PASSWORD, &here, "ssl-mode=DISABLED"), "Access denied"),
    ] {
        servers.set("SECKILL_DATABASE_URL", &wrong);
        let folder = servers.folder.path();
        for (program, args) in [("consumer", &["migrate"][..]), ("seckill", &["audit"])] {
            let ended = output(program, &servers.env, args, folder);
            let said = String::from_utf8(ended.stderr).unwrap();
            assert!(!ended.status.success() && said.contains(why), "{program} {args:?}: {why}: {said}");
            says_no_password(&said);
        }
    }
    servers.set("SECKILL_DATABASE_URL", &url(PASSWORD, &here, &verified("ca.pem")));
    migrate(&servers);
    servers.set("SECKILL_DATABASE_URL", &url(PASSWORD, &here, "ssl-mode=VERIFY_IDENTITY"));
    servers.set("SSL_CERT_FILE", &authority.path("ca.pem"));
    sells(&servers).await;
}

/// `security.protocol=SASL_SSL`; needs a build with `--features tls`.
#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn kafka() {
    let authority = Authority::new();
    let server = Server::start("kafka", &authority);
    let mut servers = Servers::start().await;
    migrate(&servers);
    // So that there is something to be called sold out.
    assert!(servers.operate(&["seed", "5"]).status.success());
    servers.brokers = format!("127.0.0.1:{}", server.port);
    let secure = server.port + 2;
    let options = |password: &str| {
        format!(
            "security.protocol=SASL_SSL,sasl.mechanism=PLAIN,sasl.username=seckill_tls,sasl.password={password}"
        )
    };
    servers.set("SECKILL_KAFKA_BROKERS", &format!("127.0.0.1:{secure}"));
    servers.set("SECKILL_KAFKA_OPTIONS", &options(PASSWORD));
    servers.set("SSL_CERT_FILE", &authority.path("ca.pem"));
    let wrong = options(WRONG);
    refused(&servers, &[("SECKILL_KAFKA_OPTIONS", &wrong)], "Authentication failed").await;
    let stranger = format!("{},ssl.ca.location={}", options(PASSWORD), authority.path("stranger.pem"));
    refused(&servers, &[("SECKILL_KAFKA_OPTIONS", &stranger)], "certificate verify failed").await;
    refused(&servers, &[("SECKILL_KAFKA_BROKERS", &alias(secure).await)], "certificate verify failed").await;
    sells(&servers).await;
}

/// Without built-in TLS to Kafka, the error says how to get it.
#[cfg(not(feature = "tls"))]
#[test]
fn kafka_without_the_feature() {
    let folder = TempDir::new().unwrap();
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let env = vec![
        set("SECKILL_REDIS_URL", "redis://127.0.0.1:1/0"),
        set("SECKILL_KAFKA_BROKERS", "127.0.0.1:1"),
        set("SECKILL_DATABASE_URL", "mysql://a:b@127.0.0.1:1/c"),
        set("SECKILL_KAFKA_OPTIONS", &format!("security.protocol=SASL_SSL,sasl.password={PASSWORD}")),
    ];
    for (program, args) in [("seckill", &["serve"][..]), ("consumer", &[])] {
        let ended = output(program, &env, args, folder.path());
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(64), "{said}");
        assert!(said.contains("SECKILL_KAFKA_OPTIONS") && said.contains("--features tls"), "{said}");
        says_no_password(&said);
    }
}
