"""A zoo of well-known networks, each a short file to read, train and change.

=====================  ===========================================================
MLP                    layers of neurons one after the other
LeNet                  the first convolutional network for digits (1998)
ResNet9, ResNet18      images, with residual connections
UNet                   an image from an image: segmentation
LSTMClassifier         a class for a sequence of vectors or tokens
LSTMLanguageModel      the next token, with a state that goes on
Seq2Seq                one sequence from another, with attention: translation
GPT                    the next token by attention; loads GPT-2's weights
ViT                    images by attention
=====================  ===========================================================

`beam_search` finds the likeliest sequences of any model that says the next token.
"""

from gpunn.models.beam_search import Beams, beam_search, select_rows
from gpunn.models.gpt import GPT, GPTConfig
from gpunn.models.lenet import LeNet
from gpunn.models.lstm import LSTMClassifier, LSTMLanguageModel
from gpunn.models.mlp import MLP
from gpunn.models.resnet import ResNet9, ResNet18
from gpunn.models.seq2seq import Seq2Seq
from gpunn.models.unet import UNet
from gpunn.models.vit import ViT

__all__ = [
    "GPT",
    "MLP",
    "Beams",
    "GPTConfig",
    "LSTMClassifier",
    "LSTMLanguageModel",
    "LeNet",
    "ResNet9",
    "ResNet18",
    "Seq2Seq",
    "UNet",
    "ViT",
    "beam_search",
    "select_rows",
]
