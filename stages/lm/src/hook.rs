//! Named places in the model where an activation is read or replaced, named as in TransformerLens.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};

/// A place in a block, for example `blocks.15.hook_resid_post`. Ordered as a forward pass comes to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hook {
    pub block: usize,
    pub site: Site,
}

/// Which activation of a block. All four are [tokens, d_model].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// The residual stream as it enters the block; of block 0, the token embeddings.
    ResidPre,
    /// What attention adds to the residual stream.
    AttnOut,
    /// What the feed-forward part adds to the residual stream.
    MlpOut,
    /// The residual stream as it leaves the block.
    ResidPost,
}

impl Site {
    const ALL: [(Site, &str); 4] = [
        (Site::ResidPre, "hook_resid_pre"),
        (Site::AttnOut, "hook_attn_out"),
        (Site::MlpOut, "hook_mlp_out"),
        (Site::ResidPost, "hook_resid_post"),
    ];

    fn name(self) -> &'static str {
        match self {
            Site::ResidPre => "hook_resid_pre",
            Site::AttnOut => "hook_attn_out",
            Site::MlpOut => "hook_mlp_out",
            Site::ResidPost => "hook_resid_post",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks.{}.{}", self.block, self.site.name())
    }
}

impl FromStr for Hook {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).with_context(|| {
            format!("\"{text}\" names no hook: expected blocks.N.hook_resid_pre, hook_resid_post, hook_mlp_out or hook_attn_out")
        })
    }
}

fn parse(text: &str) -> Result<Hook> {
    let rest = text.strip_prefix("blocks.").context("it does not start with \"blocks.\"")?;
    let (block, site) = rest.split_once('.').context("nothing after the block's number")?;
    let Some((site, _)) = Site::ALL.into_iter().find(|(_, name)| *name == site) else {
        bail!("\"{site}\" is no site of a block");
    };
    if block.is_empty() || !block.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!("\"{block}\" is no block number");
    }
    Ok(Hook { block: block.parse().context("the block's number")?, site })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_site_reads_back_as_it_prints() {
        for (site, name) in Site::ALL {
            let hook = Hook { block: 15, site };
            assert_eq!(hook.to_string(), format!("blocks.15.{name}"));
            assert_eq!(hook.to_string().parse::<Hook>().unwrap(), hook);
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_was_expected() {
        for text in [
            "",
            "blocks",
            "blocks.",
            "blocks.3",
            "blocks.x.hook_resid_post",
            "blocks.+3.hook_resid_post",
            "blocks.3.hook_resid",
            "blocks.3.hook_resid_post.x",
            "blocks.99999999999999999999.hook_resid_post",
        ] {
            let message = format!("{:#}", text.parse::<Hook>().unwrap_err());
            assert!(message.contains("expected blocks.N."), "{message}");
        }
    }
}
