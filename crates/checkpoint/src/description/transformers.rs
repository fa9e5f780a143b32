//! Reads transformers' `config.json` of its ResNets (`models/resnet/configuration_resnet.py`): the
//! shape of the network and the labels. How images are prepared is in another file.

use std::collections::BTreeMap;

use imgclass_image::Preprocessing;
use serde::Deserialize;

use super::{Description, ProblemType, check_only, parse as parse_json};
use crate::architecture::{Architecture, Block, Variant};
use crate::labels::Label;

/// The fields that decide something. A field that is absent has transformers' default.
#[derive(Deserialize)]
struct ConfigFile {
    model_type: String,
    layer_type: Option<String>,
    depths: Option<[usize; 4]>,
    hidden_sizes: Option<[usize; 4]>,
    embedding_size: Option<usize>,
    num_channels: Option<usize>,
    hidden_act: Option<String>,
    downsample_in_first_stage: Option<bool>,
    downsample_in_bottleneck: Option<bool>,
    num_labels: Option<usize>,
    id2label: Option<BTreeMap<usize, String>>,
    problem_type: Option<ProblemType>,
}

pub(super) fn parse(text: &str) -> Result<Description, String> {
    let file: ConfigFile = parse_json(text)?;
    check_only(Some(&*file.model_type), "resnet", "model_type")?;
    let labels = file.id2label.as_ref().map(make_labels).transpose()?;
    // Where both are there, transformers takes the table's length.
    let counted = labels.as_ref().map(|labels| (labels.len(), "id2label"));
    let classes = counted.or(file.num_labels.map(|classes| (classes, "num_labels")));
    let problem_type = file.problem_type.unwrap_or_default();
    Ok(Description {
        problem_type,
        architecture: Some(file.architecture()?),
        preprocessing: Preprocessing::default(),
        classes,
        labels,
    })
}

impl ConfigFile {
    fn architecture(self) -> Result<Architecture, String> {
        let block = match self.layer_type.as_deref() {
            None | Some("bottleneck") => Block::Bottleneck,
            Some("basic") => Block::Basic,
            Some(other) => {
                return Err(format!(
                    "`layer_type` is \"{other}\", expected \"basic\" or \"bottleneck\""
                ));
            }
        };
        let widths = [64, 128, 256, 512].map(|width| width * block.expansion());
        let hidden_sizes = self.hidden_sizes.unwrap_or([256, 512, 1024, 2048]);
        check_only(Some(hidden_sizes), widths, "hidden_sizes")?;
        check_only(self.embedding_size, 64, "embedding_size")?;
        check_only(self.num_channels, 3, "num_channels")?;
        check_only(self.hidden_act.as_deref(), "relu", "hidden_act")?;
        check_only(
            self.downsample_in_first_stage,
            false,
            "downsample_in_first_stage",
        )?;
        let depths = self.depths.unwrap_or([3, 4, 6, 3]);
        let known = Architecture::ALL
            .into_iter()
            .find(|known| known.block() == block && known.depths() == depths);
        let known = known.ok_or_else(|| {
            format!(
                "`depths` are {depths:?} of `layer_type` {block:?}, which is none of {}",
                Architecture::names()
            )
        })?;
        Ok(known.with_variant(match self.downsample_in_bottleneck {
            Some(true) => Variant::V1,
            _ => Variant::V1_5,
        }))
    }
}

/// Makes labels of a table, which must name every class from 0 on.
fn make_labels(table: &BTreeMap<usize, String>) -> Result<Vec<Label>, String> {
    match (0..table.len()).find(|index| !table.contains_key(index)) {
        Some(missing) => Err(format!(
            "`id2label` has {} entries, but none for class {missing}",
            table.len()
        )),
        None => Ok(table.values().map(|name| Label::plain(name)).collect()),
    }
}
