//! OpenAPI 3.1 contract of requests and answers. Ops serve it at `/openapi.json`; tests check the README's
//! tables and the running program against it.

use std::collections::BTreeMap;

use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathsBuilder, Ref,
    RefOr, Required, ResponseBuilder, ServerBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use super::answer::{Code, Language, Problem};
use super::{BUY, COUNT, NOW, ORDER, PAGE, buy, count, order};
use crate::sale::State;

/// Answers possible for any request.
const LIMITS: [Code; 4] = [Code::BadRequest, Code::TooSlow, Code::BodyTooLarge, Code::HeadTooLarge];

/// The document, for a node whose client listener is at `url`.
#[must_use]
pub fn contract(url: &str) -> OpenApi {
    let buy = with_answers::<buy::Body>(
        operation("buy", "One attempt to buy one unit").parameter(item()).parameter(key()),
        &[
            &[Code::Success, Code::SoldOut, Code::Pending, Code::NotOpen, Code::Closed, Code::CrossSite],
            &[Code::NotOnSale, Code::Busy, Code::Unavailable],
            &LIMITS[..],
        ],
    );
    let count = with_answers::<count::Body>(
        operation("count", "What is left of an item").parameter(item()),
        &[&[Code::Success], &LIMITS],
    );
    let now = with_answers::<count::Now>(
        operation("now", "The service's clock, kept by no cache"),
        &[&[Code::Success], &LIMITS],
    );
    let order = with_answers::<order::Body>(
        operation("order", "What became of an order").parameter(order_number()),
        &[&[Code::Success, Code::NotFound, Code::Unavailable], &LIMITS],
    );
    let page = with(operation("page", "The page, in Chinese and English"), &LIMITS)
        .response(
            "200",
            ResponseBuilder::new()
                .description("The page")
                .content("text/html; charset=utf-8", Content::new(Some(String::schema()))),
        )
        .response("304", ResponseBuilder::new().description("The client has it"));
    let license = LicenseBuilder::new().name("MIT OR Apache-2.0").identifier(Some("MIT OR Apache-2.0"));
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("seckill")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("N units become exactly N orders, each told to exactly one buyer."))
                .license(Some(license.build())),
        )
        .servers(Some([ServerBuilder::new()
            .url(url)
            .description(Some("This node's own listener; behind a proxy, use the proxy's address"))
            .build()]))
        .paths(
            PathsBuilder::new()
                .path(BUY, PathItem::new(HttpMethod::Post, buy))
                .path(COUNT, readable(count))
                .path(NOW, readable(now))
                .path(ORDER, readable(order))
                .path(PAGE, readable(page)),
        )
        .components(Some(
            ComponentsBuilder::new()
                .schema_from::<buy::Body>()
                .schema_from::<count::Body>()
                .schema_from::<count::Now>()
                .schema_from::<order::Body>()
                .schema_from::<Problem>()
                .schema_from::<State>()
                .build(),
        ))
        .build()
}

fn operation(name: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new().operation_id(Some(name)).summary(Some(summary)).parameter(language())
}

/// GET paths answer `HEAD`, too.
fn readable(get: OperationBuilder) -> PathItem {
    let get = get.build();
    let mut head = get.clone();
    head.operation_id = get.operation_id.as_ref().map(|name| format!("{name}Head"));
    for answer in head.responses.responses.values_mut() {
        if let RefOr::T(answer) = answer {
            answer.content.clear();
        }
    }
    let mut path = PathItem::new(HttpMethod::Get, get);
    path.head = Some(head);
    path
}

/// An operation that answers with a `Body`, or with a problem.
fn with_answers<Body: ToSchema>(operation: OperationBuilder, codes: &[&[Code]]) -> OperationBuilder {
    let codes = codes.concat();
    let (good, bad): (Vec<Code>, Vec<Code>) = codes.iter().partition(|code| code.status().is_success());
    by_status(&good).into_iter().fold(with(operation, &bad), |operation, (status, codes)| {
        let mut answer = response::<Body>("application/json; charset=utf-8", &codes);
        if good.contains(&Code::Pending) {
            let link = LinkBuilder::new().operation_id("order").parameter("order", "$response.body#/order");
            answer = answer.link("order", link.build());
        }
        if codes.contains(&Code::Pending) {
            answer = answer.header("Location", header("Where the outcome will stand, relative to this path"));
        }
        operation.response(status, answer)
    })
}

/// An operation that may answer with these problems.
fn with(operation: OperationBuilder, problems: &[Code]) -> OperationBuilder {
    by_status(problems).into_iter().fold(operation, |operation, (status, codes)| {
        let mut answer = response::<Problem>("application/problem+json; charset=utf-8", &codes);
        if codes.contains(&Code::Unavailable) {
            answer = answer.header("Retry-After", header("Seconds"));
        }
        operation.response(status, answer)
    })
}

fn by_status(codes: &[Code]) -> BTreeMap<String, Vec<Code>> {
    let mut statuses = BTreeMap::<String, Vec<Code>>::new();
    for code in codes {
        statuses.entry(code.status().as_str().to_owned()).or_default().push(*code);
    }
    statuses
}

/// An answer, described by its messages.
fn response<Body: ToSchema>(kind: &str, codes: &[Code]) -> ResponseBuilder {
    let sentences: Vec<String> =
        codes.iter().map(|code| format!("`{}`: {}", code.name(), code.message(Language::En, 0))).collect();
    ResponseBuilder::new()
        .description(sentences.join("; "))
        .content(kind, Content::new(Some(Ref::from_schema_name(Body::name()))))
}

fn header(description: &str) -> Header {
    HeaderBuilder::new().description(Some(description)).schema(Some(String::schema())).build()
}

fn item() -> ParameterBuilder {
    parameter("item", ParameterIn::Query, "What is bought; the default item without it")
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[a-z0-9-]{1,32}$"))))
}

fn key() -> ParameterBuilder {
    let why = "The attempt's name: the same one is answered with the same order, however often it is sent";
    parameter("Idempotency-Key", ParameterIn::Header, why).schema(Some(
        ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[!-~]([ -~]{0,62}[!-~])?$")),
    ))
}

fn language() -> ParameterBuilder {
    parameter("Accept-Language", ParameterIn::Header, "English or Chinese `messages`; Chinese without it")
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).examples(["en", "zh-CN"])))
}

fn order_number() -> ParameterBuilder {
    parameter("order", ParameterIn::Path, "As an answer named it").required(Required::True).schema(Some(
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))),
    ))
}

fn parameter(name: &str, place: ParameterIn, description: &str) -> ParameterBuilder {
    ParameterBuilder::new().name(name).parameter_in(place).description(Some(description))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The cells of the rows of the README's table whose head begins with this.
    fn table(head: &str) -> Vec<Vec<&'static str>> {
        include_str!("../../README.md")
            .lines()
            .skip_while(|line| !line.starts_with(head))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect()
    }

    fn quoted(cell: &'static str) -> impl Iterator<Item = &'static str> {
        cell.split('`').skip(1).step_by(2)
    }

    #[test]
    fn the_readme_lists_every_path() {
        let document = serde_json::to_value(contract("http://shop")).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        let listed = table("| request |").into_iter().flat_map(|row| quoted(row[0])).map(str::to_owned);
        let known = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().expect("methods").keys();
            methods
                .filter(|method| *method != "head")
                .map(move |method| format!("{} {path}", method.to_uppercase()))
        });
        assert_eq!(listed.collect::<BTreeSet<_>>(), known.collect::<BTreeSet<_>>());
    }

    #[test]
    fn the_readme_lists_every_code_of_an_attempt_with_its_status() {
        let document = serde_json::to_value(contract("http://shop")).expect("JSON");
        let answers = document["paths"][BUY]["post"]["responses"].as_object().expect("responses");
        let listed = table("| `code` |").into_iter().flat_map(|row| {
            let statuses = row[1].split(", ");
            statuses.flat_map(move |status| quoted(row[0]).map(move |code| format!("{status} {code}")))
        });
        let known = answers.iter().flat_map(|(status, answer)| {
            let sentences = answer["description"].as_str().expect("a description").split("; ");
            sentences.map(move |it| format!("{status} {}", it.split('`').nth(1).expect("a code")))
        });
        assert_eq!(listed.collect::<BTreeSet<_>>(), known.collect::<BTreeSet<_>>());
    }
}
