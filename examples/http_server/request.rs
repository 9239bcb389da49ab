//! The head of a request: parsed by `httparse`, reduced to what a file server needs.

use std::time::SystemTime;

use httparse::{EMPTY_HEADER, Header};

use crate::response::Status;

/// The maximum length of a head in bytes.
pub const MAX_HEAD: usize = 8192;
const MAX_HEADERS: usize = 64;

pub struct Request<'a> {
    /// The length of the head, which is all of the request.
    pub len: usize,
    pub method: Method,
    /// The path, as the client has sent it.
    pub target: &'a str,
    pub keep_alive: bool,
    /// A kept connection needs a header that says so.
    pub is_http_1_0: bool,
    pub range: Option<&'a str>,
    pub if_range: Option<&'a str>,
    pub if_modified_since: Option<SystemTime>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Other,
}

/// Parses the first request in `bytes`, which is complete or too long.
pub fn parse(bytes: &[u8]) -> Result<Request<'_>, Status> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Err(Status::BadRequest),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(Status::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(Status::Version),
        Err(_) => return Err(Status::BadRequest),
    };
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        _ => Method::Other,
    };
    let is_http_1_0 = head.version == Some(0);
    let mut request = Request {
        len,
        method,
        target: path_of(head.path.unwrap_or_default()),
        keep_alive: !is_http_1_0,
        is_http_1_0,
        range: None,
        if_range: None,
        if_modified_since: None,
    };
    // A body would be taken for the next request.
    if read_headers(&mut request, head.headers)? { Err(Status::BodyRefused) } else { Ok(request) }
}

/// Returns whether the request has a body.
fn read_headers<'a>(request: &mut Request<'a>, headers: &[Header<'a>]) -> Result<bool, Status> {
    let (mut hosts, mut has_body) = (0, false);
    for header in headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let text = || std::str::from_utf8(header.value).map_err(|_| Status::BadRequest);
        // Most headers of a request are none of these.
        match header.name.len() {
            4 if is("Host") => hosts += 1,
            5 if is("Range") => request.range = Some(text()?),
            8 if is("If-Range") => request.if_range = Some(text()?),
            10 if is("Connection") => {
                for option in text()?.split(',').map(str::trim) {
                    if option.eq_ignore_ascii_case("close") {
                        request.keep_alive = false;
                    } else if option.eq_ignore_ascii_case("keep-alive") {
                        request.keep_alive = true;
                    }
                }
            }
            14 if is("Content-Length") => has_body |= text()?.parse::<u64>().map_err(|_| Status::BadRequest)? > 0,
            17 if is("Transfer-Encoding") => has_body = true,
            17 if is("If-Modified-Since") => request.if_modified_since = httpdate::parse_http_date(text()?).ok(),
            _ => {}
        }
    }
    match hosts {
        1 => Ok(has_body),
        0 if request.is_http_1_0 => Ok(has_body),
        _ => Err(Status::BadRequest),
    }
}

/// Returns the path of a target, which may be a whole URL.
fn path_of(target: &str) -> &str {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    path.split(['?', '#']).next().unwrap_or_default()
}
