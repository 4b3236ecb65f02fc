"""What a trainer imports until its first step."""

from rlhf_trainer.quiet import import_deepspeed, silence_libraries

silence_libraries()  # libraries read its variables as they load
import_deepspeed()

import peft  # noqa: E402, F401
import rlhf_trainer.__main__  # noqa: E402
import rlhf_trainer.launcher.launch  # noqa: E402
import rlhf_trainer.prepare  # noqa: E402
import rlhf_trainer.stages.dpo  # noqa: E402
import rlhf_trainer.stages.ppo  # noqa: E402
import rlhf_trainer.stages.reward  # noqa: E402
import rlhf_trainer.stages.sft  # noqa: E402, F401
import tensorboard.summary.writer.event_file_writer  # noqa: E402, F401
import torch.distributed.launcher.api  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401
