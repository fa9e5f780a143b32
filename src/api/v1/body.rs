//! Reads the images of a request in the three forms in which they may come: JSON with URLs and
//! base64, `multipart/form-data`, or one image as the body itself.

use std::marker::PhantomData;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use poem::http::StatusCode;
use poem::{Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::{ParseFromJSON, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions, Object};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::api::body::read;
use crate::api::images::{check_count, decode_base64};
use crate::api::json;
use crate::api::problem::{Failure, clip};
use crate::api::state::state_of;
use crate::service::Source;
use imgclass_image::Format;

/// One image: either where it is, or what it is.
#[derive(Debug, Clone, Object, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageReference {
    /// An `http:` or `https:` URL of a public server, or `data:image/...;base64,...`.
    #[oai(skip_serializing_if_is_none)]
    pub(super) url: Option<String>,
    /// The encoded image itself, in base64.
    #[oai(skip_serializing_if_is_none)]
    pub(super) base64: Option<String>,
}

/// The JSON form of a request about images: its options, and the images among them.
pub(super) trait ImagesRequest: Type + ParseFromJSON + DeserializeOwned {
    /// Takes the images out; the options stay.
    fn take_images(&mut self) -> Vec<ImageReference>;
}

/// An image of a request, or what is wrong with how it was sent.
pub(super) type Sent = Result<Source, Failure>;

/// A request's options and its images.
pub(super) struct Images<T> {
    pub(super) options: T,
    pub(super) images: Vec<Sent>,
    /// Says that the request is about this one image, so that its failure is the request's failure.
    pub(super) alone: bool,
}

/// Extracts [`Images`] from a request's body, in any of the three forms.
pub(super) struct ImagesBody<T>(pub(super) Images<T>);

impl<'a, T: ImagesRequest> ApiExtractor<'a> for ImagesBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let of = |content_type, schema| MetaMediaType {
            content_type,
            schema,
        };
        Some(MetaRequest {
            description: Some("Images as JSON, as files of a form, or one as the body itself."),
            content: vec![
                of(Json::<T>::CONTENT_TYPE, T::schema_ref()),
                of(FORM, form_schema()),
                of("image/*", MetaSchemaRef::Inline(Box::new(binary()))),
            ],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let state = state_of(request)?;
        let body = read(request, body).await?;
        let content_type = request.content_type().unwrap_or_default();
        let max_images = state.limits().max_images;
        let reader = Reader {
            max_images,
            request: PhantomData,
        };
        let images = if is_image(content_type, &body) {
            reader.raw(body.into_bytes())?
        } else {
            // The whole body is there, so nothing is waited for.
            let read = |bytes| reader.read(content_type, bytes).now_or_never();
            let waits = || Failure::internal_because("a body that is there was waited for");
            body.parse(read).await.ok_or_else(waits)??
        };
        check_count(images.images.len(), max_images)?;
        Ok(Self(images))
    }
}

const FORM: &str = "multipart/form-data";

/// The most fields of a form that are options: more than any route has.
const MAX_OPTIONS: usize = 16;

fn binary() -> MetaSchema {
    MetaSchema::new_with_format("string", "binary")
}

/// Describes the form's two ways of naming images. Its other fields are the options of the JSON
/// form.
fn form_schema() -> MetaSchemaRef {
    let array = |items: MetaSchema, description| {
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            items: Some(Box::new(MetaSchemaRef::Inline(Box::new(items)))),
            description: Some(description),
            ..MetaSchema::new("array")
        }))
    };
    MetaSchemaRef::Inline(Box::new(MetaSchema {
        properties: vec![
            ("image", array(binary(), "Image files, under any name.")),
            (
                "url",
                array(MetaSchema::new("string"), "URLs of images, one a field."),
            ),
        ],
        ..MetaSchema::new("object")
    }))
}

/// Returns a media type without its parameters.
fn kind(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Returns whether a body is an image: whether it says so, or is one. `curl --data-binary @photo.jpg`
/// calls its body a form; the bytes say what it is.
fn is_image(content_type: &str, bytes: &[u8]) -> bool {
    let kind = kind(content_type).to_ascii_lowercase();
    let says_so = kind.starts_with("image/") || kind == "application/octet-stream";
    says_so || kind != FORM && Format::sniff(bytes).is_some()
}

/// Reads the three forms of a request `T`.
struct Reader<T> {
    max_images: usize,
    request: PhantomData<T>,
}

impl<T: ImagesRequest> Reader<T> {
    async fn read(&self, content_type: &str, bytes: Bytes) -> Result<Images<T>, Failure> {
        if is_image(content_type, &bytes) {
            self.raw(bytes)
        } else if kind(content_type).eq_ignore_ascii_case(FORM) {
            self.form(content_type, bytes).await
        } else {
            self.json(&bytes)
        }
    }

    fn json(&self, bytes: &[u8]) -> Result<Images<T>, Failure> {
        let mut options: T = json::read_object(bytes, "a JSON object")?;
        let references = options.take_images().into_iter().enumerate();
        let images = references.map(|(i, reference)| source(i, reference));
        Ok(Images {
            images: images.collect::<Result<_, _>>()?,
            options,
            alone: false,
        })
    }

    fn raw(&self, bytes: Bytes) -> Result<Images<T>, Failure> {
        if bytes.is_empty() {
            return Err(Failure::invalid_request(
                "the body is empty; it must be an image",
            ));
        }
        Ok(Images {
            options: options(Map::new())?,
            images: vec![Ok(Source::Bytes(bytes))],
            alone: true,
        })
    }

    async fn form(&self, content_type: &str, bytes: Bytes) -> Result<Images<T>, Failure> {
        let boundary = multer::parse_boundary(content_type).map_err(broken_form)?;
        let body = stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
        let mut form = multer::Multipart::new(body, boundary);
        let (mut images, mut fields) = (Vec::new(), Map::new());
        while let Some(field) = form.next_field().await.map_err(broken_form)? {
            // A form may have a part for each 60 bytes, which would take much more memory than that.
            check_count(images.len().max(1), self.max_images)?;
            if fields.len() > MAX_OPTIONS {
                let detail = format!("the form has more than {MAX_OPTIONS} options");
                return Err(Failure::invalid_request(detail));
            }
            let name = field.name().unwrap_or_default().to_owned();
            let is_file = field.file_name().is_some()
                || field
                    .content_type()
                    .is_some_and(|kind| kind.type_() == "image");
            if is_file {
                images.push(Ok(Source::Bytes(field.bytes().await.map_err(broken_form)?)));
                continue;
            }
            // A text of bytes that are no UTF-8 would become three times as long if it were mended.
            let text = String::from_utf8(field.bytes().await.map_err(broken_form)?.into());
            let text = text.map_err(|_| no_text(&name))?;
            if name == "url" {
                images.push(Ok(Source::Url(text)));
            } else {
                fields.insert(name, scalar(text));
            }
        }
        Ok(Images {
            options: options(fields)?,
            images,
            alone: false,
        })
    }
}

fn broken_form(error: multer::Error) -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "malformed-form",
        "The form cannot be read",
        error.to_string(),
    )
}

fn no_text(field: &str) -> Failure {
    let (code, title) = ("malformed-form", "The form cannot be read");
    let detail = format!("{}: the field holds bytes that are no UTF-8", clip(field));
    Failure::new(StatusCode::BAD_REQUEST, code, title, detail)
}

/// Reads the options of a request whose images are not JSON.
fn options<T: DeserializeOwned>(mut fields: Map<String, Value>) -> Result<T, Failure> {
    fields.insert("images".to_owned(), Value::Array(Vec::new()));
    let path_and_reason = |error: serde_path_to_error::Error<serde_json::Error>| {
        let (path, reason) = (error.path().to_string(), error.into_inner());
        Failure::invalid_request(match path.as_str() {
            "." => reason.to_string(),
            field => format!("{field}: {reason}"),
        })
    };
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(path_and_reason)
}

/// The longest text of a form's field that may be a number or a truth value, in bytes. A longer one
/// is not parsed: as a list or an object it would take many times its size.
const MAX_SCALAR: usize = 64;

/// Converts the text of a form's field to JSON: to a number or a truth value if it is one, else to
/// a text.
fn scalar(text: String) -> Value {
    if text.len() > MAX_SCALAR {
        return Value::String(text);
    }
    match serde_json::from_str(&text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(text),
    }
}

/// Converts the image at `position` of a JSON request.
///
/// # Errors
/// The outer error fails the request: the image is not one of the two forms. The inner one, of
/// base64 that cannot be decoded, fails the image alone.
fn source(position: usize, reference: ImageReference) -> Result<Sent, Failure> {
    match (reference.url, reference.base64) {
        (Some(url), None) => Ok(Ok(Source::Url(url))),
        (None, Some(text)) => Ok(decode_base64(&text).map_err(|reason| {
            Failure::invalid_request(format!("images[{position}].base64: {reason}"))
        })),
        _ => Err(Failure::invalid_request(format!(
            "images[{position}]: expected either `url` or `base64`"
        ))),
    }
}

/// Reads a body as a route for requests `T` does.
#[cfg(fuzzing)]
pub(super) fn fuzz<T: ImagesRequest>(content_type: &str, bytes: Bytes) {
    const MAX_IMAGES: usize = 4;
    let reader = Reader::<T> {
        max_images: MAX_IMAGES,
        request: PhantomData,
    };
    let length = bytes.len();
    let read = reader.read(content_type, bytes).now_or_never();
    let Some(Ok(images)) = read else {
        // The whole body is there, so nothing is waited for.
        assert!(read.is_some());
        return;
    };
    assert!(images.images.len() <= json::MAX_IMAGES);
    let held = images.images.iter().map(|image| match image {
        Ok(Source::Bytes(bytes)) => bytes.len(),
        Ok(Source::Url(url)) => url.len(),
        _ => 0,
    });
    // In a URL, a byte that is no UTF-8 becomes a character of three.
    assert!(held.sum::<usize>() <= 3 * length);
}
