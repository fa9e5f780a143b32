//! Images as requests bring them: JSON with URLs and base64, `multipart/form-data`, or one image as the body itself. Reads requests; decides
//! nothing about images.

use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use bytes::Bytes;
use futures_util::stream;
use poem::{Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::{ParseFromJSON, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions, Object};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::api::body::{parse, read, typed};
use crate::api::problem::Failure;
use crate::api::state::ApiState;
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

/// A request about images: its own options, and the images of its JSON form.
pub(super) trait ImagesRequest: Type + ParseFromJSON + DeserializeOwned {
    /// Takes the images out; options stay.
    fn take_images(&mut self) -> Vec<ImageReference>;
}

/// An image that was sent, or what is wrong with how it was sent.
pub(super) type Sent = Result<Source, Failure>;

/// A request's options and its images.
pub(super) struct Images<T> {
    pub(super) options: T,
    pub(super) images: Vec<Sent>,
    /// The body was the image: what fails it fails the request.
    pub(super) alone: bool,
}

/// A form of [`Images`] in the body.
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
        let state = request.data::<ApiState>().ok_or_else(Failure::loading)?;
        let bytes = read(request, body).await?;
        let content_type = request.content_type().unwrap_or_default();
        let images = Reader(PhantomData).read(content_type, bytes).await?;
        within(images.images.len(), state.limits().max_images)?;
        Ok(Self(images))
    }
}

const FORM: &str = "multipart/form-data";

fn binary() -> MetaSchema {
    MetaSchema::new_with_format("string", "binary")
}

/// The form's two ways of naming images; its other fields are the JSON form's options.
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

/// One image at least, and no more than the limit.
pub(in crate::api) fn within(images: usize, limit: usize) -> Result<(), Failure> {
    match images {
        0 => Err(Failure::invalid_request(
            "images: there are none; send at least one".to_owned(),
        )),
        n if n > limit => Err(Failure::invalid_request(format!(
            "images: {n} are over the limit of {limit} in one request; send several requests"
        ))),
        _ => Ok(()),
    }
}

/// Reads the three forms; a type only to name the request's once.
struct Reader<T>(PhantomData<T>);

impl<T: ImagesRequest> Reader<T> {
    async fn read(&self, content_type: &str, bytes: Bytes) -> Result<Images<T>, Failure> {
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        match kind.to_ascii_lowercase() {
            kind if kind == FORM => self.form(content_type, bytes).await,
            kind if kind.starts_with("image/") || kind == "application/octet-stream" => {
                self.raw(bytes)
            }
            // `curl --data-binary @photo.jpg` calls it a form: the bytes know better.
            _ if Format::sniff(&bytes).is_some() => self.raw(bytes),
            _ => self.json(&bytes),
        }
    }

    fn json(&self, bytes: &[u8]) -> Result<Images<T>, Failure> {
        let mut options: T = parse(bytes)?;
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
                "the body is empty; it must be an image".to_owned(),
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
            let name = field.name().unwrap_or_default().to_owned();
            let is_file = field.file_name().is_some()
                || field
                    .content_type()
                    .is_some_and(|kind| kind.type_() == "image");
            if is_file {
                images.push(Ok(Source::Bytes(field.bytes().await.map_err(broken_form)?)));
                continue;
            }
            let text = field.text().await.map_err(broken_form)?;
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
    Failure::malformed_form(error.to_string())
}

/// Options that came beside images rather than with them.
fn options<T: DeserializeOwned>(mut fields: Map<String, Value>) -> Result<T, Failure> {
    fields.insert("images".to_owned(), Value::Array(Vec::new()));
    typed(Value::Object(fields))
}

/// A form's text as JSON would have it: a number or a truth value where it is one.
fn scalar(text: String) -> Value {
    match serde_json::from_str(&text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(text),
    }
}

/// Padding may be missing, as it is in many clients' base64.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Decodes base64; the text for whoever sent it says what is wrong.
pub(in crate::api) fn decode_base64(text: &str) -> Result<Source, String> {
    match BASE64.decode(text) {
        Ok(bytes) => Ok(Source::Bytes(bytes.into())),
        Err(error) => Err(format!("this is not base64: {error}")),
    }
}

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
