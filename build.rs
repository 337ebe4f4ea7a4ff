//! Makes the page's files ready to be sent: under names that change with their content, and packed as
//! small as they get.

use std::env::var_os;
use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use brotli::enc::BrotliEncoderParams;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

/// Each after those it names.
const FILES: [(&str, &str); 7] = [
    ("favicon.svg", "image/svg+xml"),
    ("poster.svg", "image/svg+xml"),
    ("style.css", "text/css; charset=utf-8"),
    ("words.js", "text/javascript; charset=utf-8"),
    ("clock.js", "text/javascript; charset=utf-8"),
    ("app.js", "text/javascript; charset=utf-8"),
    ("index.html", "text/html; charset=utf-8"),
];

#[allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=static");
    println!("cargo::rerun-if-changed=build.rs");
    let out = var_os("OUT_DIR").ok_or("OUT_DIR is not set; cargo sets it")?;
    let out = Path::new(&out);
    let mut named: Vec<(&str, String)> = Vec::new();
    let mut table = String::from("[\n");
    for (file, kind) in FILES {
        let mut text = fs::read_to_string(Path::new("static").join(file))?;
        for (name, now) in &named {
            // As they stand in attributes and in imports.
            text = text.replace(&format!("\"{name}\""), &format!("\"{now}\""));
            text = text.replace(&format!("'./{name}'"), &format!("'./{now}'"));
        }
        let hash: String = Sha256::digest(&text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let (stem, extension) = file.split_once('.').ok_or("a file without an extension")?;
        let hashed = format!("{stem}.{hash}.{extension}");

        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(text.as_bytes())?;
        let mut packed = Vec::new();
        brotli::BrotliCompress(&mut text.as_bytes(), &mut packed, &BrotliEncoderParams::default())?;
        for (form, bytes) in
            [("plain", text.as_bytes()), ("gz", gzip.finish()?.as_slice()), ("br", packed.as_slice())]
        {
            fs::write(out.join(format!("{file}.{form}")), bytes)?;
        }
        let bytes = |form| format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}.{form}\"))");
        let mut entry = |path: &str, lasts: bool| {
            table += &format!(
                "File {{ path: \"/{path}\", kind: HeaderValue::from_static(\"{kind}\"), lasts: {lasts}, \
                 plain: Form {{ tag: HeaderValue::from_static(\"\\\"{hash}\\\"\"), bytes: {} }}, \
                 gzip: Form {{ tag: HeaderValue::from_static(\"\\\"{hash}-gz\\\"\"), bytes: {} }}, \
                 brotli: Form {{ tag: HeaderValue::from_static(\"\\\"{hash}-br\\\"\"), bytes: {} }} }},\n",
                bytes("plain"),
                bytes("gz"),
                bytes("br"),
            );
        };
        if file == "index.html" {
            entry("", false);
        } else {
            entry(&hashed, true);
            // For whoever remembers the name.
            entry(file, false);
        }
        named.push((file, hashed));
    }
    table.push(']');
    fs::write(out.join("files.rs"), table)?;
    Ok(())
}
